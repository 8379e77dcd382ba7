// SPDX-License-Identifier: BSD-3-Clause
#include "regression_sampler.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>
#include <vector>

namespace torch_rescaled::solvers {
namespace {

using Rows = rescaled::RegressionRows;

constexpr int kRounds = 3;        // of samples, to find leverages by
constexpr double kRidge = 1e-12;  // of the scaled Hessian that they are found by, at least
constexpr double kInfinite = std::numeric_limits<double>::infinity();

double square_of(const Tensor& t) { return at::dot(t, t).item<double>(); }
Tensor vector(const Jacobian& j, int64_t i) { return j.rows.select(-2, i).to(at::kDouble); }

// Leverages are at most 1, and their sum is at most the number of columns: chances in any unit, brought to that. Rows
// that a poor metric shows far too long are then drawn about once, and do not crowd out the others.
Tensor capped(Tensor chances, int64_t columns) {
  Tensor large = at::zeros_like(chances, at::kBool);
  for (int i = 0; i < 4; ++i) {
    const double left = static_cast<double>(columns) - large.sum().item<double>(),
                 sum = chances.masked_fill(large, 0).sum().item<double>();
    if (!(sum > 0) || left <= 0) break;
    chances = at::where(large, 1, chances * (left / sum));
    large = chances >= 1;
  }
  return chances.clamp_max(1);
}

}  // namespace

Jacobian jacobian(const RegressionData& data, const Tensor& rows, const Tensor& logits, const Point& point,
                  const RegressionSettings& settings, Tensor* gradient) {
  const bool plain = settings.form == "plain";
  std::vector<Tensor> vectors = {rows.select(-2, Rows::p)};
  if (gradient != nullptr) vectors.push_back(rows.select(-2, Rows::gradient));
  if (plain) vectors.erase(vectors.begin());
  Jacobian out{rows, data.squares(logits, point, settings), {}, settings.kind == "exp"};
  const Tensor sides = vectors.empty() ? Tensor() : data.transposed(at::stack(vectors), false);
  if (gradient != nullptr) *gradient = sides[-1];
  out.side = plain ? at::zeros({data.columns()}, at::kDouble) : sides[0];
  return out;
}

uint64_t RowSampler::seed(int64_t use) const { return seed_of(sampling_.seed, 16 * point_ + use); }

// |J_i|^2 up to a factor of at most 2: of p_i (a_i - c) and of what v_i h and p_i c differ by.
Tensor RowSampler::chances(const Jacobian& j) const {
  const int64_t n = data_.rows();
  if (sampling_.by == "uniform") return at::ones({n}, j.rows.options().dtype(at::kDouble));
  const Tensor diagonal = vector(j, Rows::diagonal);
  Tensor out = sizes_.known ? diagonal * sizes_.sizes : diagonal;
  if (!j.squares.defined()) return out;
  const Tensor p = vector(j, Rows::p), squares = j.squares.to(at::kDouble);
  const double sum = p.sum().item<double>(), unit = p.abs().sum().item<double>();
  const bool in_metric = sizes_.known && sampling_.by == "leverage";
  const auto size = [&](const Tensor& t) { return square_of(in_metric ? at::matmul(sizes_.metric.mT(), t) : t); };
  if (j.centered) {
    const Tensor rest = (diagonal - 2 * sum * vector(j, Rows::q) + sum * sum * squares).clamp_min(0);
    return out + rest * (sizes_.known ? size(j.side / sum) : 1);
  }
  return out + squares * (sizes_.known ? size(j.side) : unit * unit);
}

SampledHessian RowSampler::sampled(const Jacobian& j, const Tensor& inner, const Tensor& chances, uint64_t seed) {
  const Sample sample = draw_rows(chances, count(), seed);
  if (!sample) return {};
  RegressionPoint drawn = data_.gathered(sample.index);
  drawn.b = sample.weight;
  const Group alone;
  const RegressionData rows(drawn, alone);
  const auto type = j.rows.options();
  const auto weighted = [&](const Tensor& t) {
    return (t.index_select(-1, sample.index).to(at::kDouble) * sample.weight).to(type);
  };
  const Tensor zero = at::zeros_like(sample.weight, type), diagonal = weighted(j.rows.select(-2, Rows::diagonal)),
               noise = weighted(j.rows.select(-2, Rows::noise));
  const RegressionCurvature gram =
      rows.curvature(at::stack({zero, diagonal, zero, zero, zero, zero, noise}), 0, "gauss_newton");
  SampledHessian found{gram.hessian, gram.noise, {}};
  const Tensor residual = inner.defined() ? weighted(inner) : zero;
  found.inner_sum = residual.sum(at::kDouble).item<double>();
  if (j.squares.defined()) {
    const Tensor sides = rows.transposed(at::stack({weighted(j.rows.select(-2, Rows::q)), residual}), false);
    const double square = weighted(j.squares).sum(at::kDouble).item<double>();
    const Tensor cross = at::outer(j.side, sides[0]);
    found.hessian = found.hessian - cross - cross.mT() + square * at::outer(j.side, j.side);
    found.gradient = sides[1];
  } else if (inner.defined()) {
    found.gradient = rows.transposed(residual.unsqueeze(0), false)[0];
  }
  return found;
}

// Where the first sample, by weight, has missed directions, leverages by it are far too large, and a sample by those
// has the directions: another round, until their sum is about what it should be.
void RowSampler::size_rows(const Jacobian& j) {
  const double sum = j.centered ? vector(j, Rows::p).sum().item<double>() : 0;
  const Tensor center = j.centered && j.squares.defined() ? j.side / sum : at::zeros_like(j.side);
  if (sampling_.by != "leverage") {
    sizes_.sizes = data_.row_sizes(center, {}), sizes_.known = true, reads_ += 1;
    return;
  }
  for (int i = 0; i < kRounds; ++i) {
    const SampledHessian by = sampled(j, {}, chances(j).clamp_max(i == 0 ? kInfinite : 1), seed(1 + 2 * i));
    if (!by.hessian.defined()) return;
    const Factored factor(by.hessian, kRidge);
    if (!factor) return;
    sizes_.metric = factor.half_inverse(normal_deviates(data_.columns(), RowSizes::kSketch, seed(2 + 2 * i))) /
                    std::sqrt(static_cast<double>(RowSizes::kSketch));
    sizes_.sizes = data_.row_sizes(center, sizes_.metric), sizes_.known = true, reads_ += 1;
    if (chances(j).clamp_max(1).sum().item<double>() < 1.5 * static_cast<double>(data_.columns())) return;
  }
}

SampledHessian RowSampler::hessian(const Jacobian& j, const Tensor& inner) {
  if (!sizes_.known && sampling_.measures()) size_rows(j);
  Tensor chance = chances(j);
  if (sizes_.known && sampling_.by == "leverage") chance = capped(chance, data_.columns());
  return sampled(j, inner, chance, seed(0));
}

RegressionPoint RowSampler::subset(bool normalized) {
  const RegressionPoint& x = data_.problem();
  const Sample drawn = draw_rows(at::ones({data_.rows()}, x.b.options().dtype(at::kDouble)), count(), seed(0));
  const double more = static_cast<double>(data_.rows()) / static_cast<double>(drawn.index.size(0));
  const auto of = [&](const Tensor& t) { return t.defined() ? t.index_select(0, drawn.index) : t; };
  RegressionPoint out = data_.gathered(drawn.index);
  out.b = normalized ? of(x.b) * more : of(x.b), out.row_weight = of(x.row_weight);
  out.penalty_weight = of(x.penalty_weight);
  return out;
}

Tensor sampled_hessian_at(const RegressionPoint& point, const RegressionSettings& settings, const Sampling& sampling) {
  const Group alone;
  const RegressionData data(point, alone);
  const Tensor logits = data.matvec(point.x);
  const Point numbers = data.point(logits, settings);
  const Jacobian j =
      jacobian(data, data.vectors(logits, data.statistics_of(numbers), settings), logits, numbers, settings);
  RowSizes sizes;
  double reads = 0;
  const SampledHessian found = RowSampler(data, sampling, sizes, 0, reads).hessian(j);
  const int64_t d = data.columns();
  return found.hessian.defined() ? found.hessian : at::full({d, d}, std::nan(""), at::kDouble);
}

}  // namespace torch_rescaled::solvers
