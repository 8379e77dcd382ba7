// SPDX-License-Identifier: BSD-3-Clause
#include "map_start.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/asinh.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/log.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "../ops/check.h"

namespace torch_rescaled::solvers {
namespace {

constexpr int64_t kBlock = 1 << 20;  // elements of the target at a time
constexpr int kLanczos = 32, kTurns = 24;
constexpr double kLeastShare = 1e-4;  // of a row's largest element: a smaller one's logarithm counts as this one's
constexpr double kCutoff = 1e-10;

double log_loss_at(const Objective& objective, const Tensor& x) {
  const std::unique_ptr<Place> place = objective.at(x);
  const double found = std::log(place->loss) + place->log_scale;
  return std::isnan(found) ? std::numeric_limits<double>::infinity() : found;
}
// By the loss, or by the rows' angles, which poles do not matter to.
Tensor best_of(const Objective& objective, const std::vector<Tensor>& candidates, bool by_angle = false) {
  Tensor best;
  double least = std::numeric_limits<double>::infinity();
  for (const Tensor& x : candidates) {
    if (!x.isfinite().all().item<bool>()) continue;
    const double found = by_angle ? objective.at(x)->misfit : log_loss_at(objective, x);
    if (!best.defined() || found < least) best = x, least = found;
  }
  return best.defined() ? best : at::zeros({objective.size()}, at::kDouble);
}

// V^T gram V = 1 over the directions that are there: gram's pseudo-inverse is V V^T.
Tensor pseudo_inverse(const Tensor& gram) {
  const Tensor white = whitening(gram, kCutoff);
  return at::matmul(white, white.mT());
}
Tensor unit_size(const Objective& objective, const Tensor& x) {
  const double size = objective.logits(x);
  return size > 0 ? x / size : x;
}
// visit(rows of B [s, r, n2], which elements take part, first row, last row) in blocks.
template <class Visit>
void for_blocks(const MatrixData& data, bool is_causal, Visit visit) {
  const Tensor &B = data.point.target, &mask = data.point.mask;
  const int64_t n1 = B.size(-2), n2 = B.size(-1),
                step = std::max<int64_t>(kBlock / std::max<int64_t>(n2 * B.size(0), 1), 1);
  for (int64_t i = 0; i < n1; i += step) {
    const int64_t end = std::min(i + step, n1);
    Tensor taken = at::ones({end - i, n2}, B.options().dtype(at::kBool));
    if (is_causal) taken = taken.tril(i);
    if (mask.defined()) taken = taken.logical_and(mask.size(-2) == 1 ? mask : mask.slice(-2, i, end));
    visit(B.slice(-2, i, end), taken, i, end);
  }
}

Tensor exponential_start(const MatrixObjective& objective, const MatrixData& data, const MatrixSettings& settings) {
  const Tensor zero = at::zeros({objective.size()}, at::kDouble);
  if (data.point.key.size(-2) == 0) return zero;
  // Rows without their mean do not see the mean of the keys.
  const Tensor keys = data.point.key - data.point.key.mean(-2, /*keepdim=*/true);
  Tensor sum = at::zeros({data.A1.size(-1), data.point.key.size(-1)}, at::kDouble);
  if (data.point.target.defined()) {
    for_blocks(data, settings.is_causal, [&](const Tensor& b, const Tensor& taken, int64_t first, int64_t last) {
      const Tensor hidden = taken.logical_not();
      const Tensor least = kLeastShare * b.masked_fill(hidden, 0).amax(-1, /*keepdim=*/true).clamp_min(1e-30);
      const Tensor logits = b.maximum(least).log().masked_fill(hidden, 0);
      const Tensor mean = logits.sum(-1, /*keepdim=*/true) / taken.sum(-1, /*keepdim=*/true).clamp_min(1);
      const Tensor rows = (logits - mean).masked_fill(hidden, 0);
      sum += wide(at::matmul(data.A1.slice(-2, first, last).mT(), at::matmul(rows, data.point.key)).sum(0));
    });
  } else if (settings.source == "exp") {  // the teacher's scores are its logarithms
    const Tensor rows = at::matmul(data.A1.mT(), data.point.target_rows),
                 columns = at::matmul(data.point.target_columns.mT(), keys);
    sum = wide(at::matmul(rows, columns).sum(0));
  } else {
    return zero;
  }
  sum = wide(data.group.sum(sum.to(data.A1.device())));
  const Grams grams(data.A1, keys, data.group);
  const Tensor X = at::matmul(pseudo_inverse(grams.left), at::matmul(sum, pseudo_inverse(grams.right)));
  std::vector<Tensor> candidates = {zero};
  for (const double factor : {1., .5, .25}) candidates.push_back(factor * X.flatten());
  return best_of(objective, candidates);
}

// Where u is constant, the direction in which the loss curves down most, at the length that lowers it most.
Tensor even_start(const MatrixObjective& objective) {
  const Grams& grams = objective.grams();
  const Tensor left = whitening(grams.left, kCutoff), right = whitening(grams.right, kCutoff);
  const std::unique_ptr<Place> place = objective.at(at::zeros({objective.size()}, at::kDouble));
  place->curve(/*full=*/true);
  const int64_t r = left.size(1), s = right.size(1);
  if (r * s == 0) return at::zeros({objective.size()}, at::kDouble);
  const auto outside = [&](const Tensor& v) {
    return at::matmul(left, at::matmul(v.view({r, s}), right.mT())).contiguous().flatten();
  };
  // Lanczos with every vector kept.
  std::vector<Tensor> basis, images;
  Tensor v = scattered(r * s);
  for (int64_t i = 0; i < std::min<int64_t>(kLanczos, r * s); ++i) {
    for (int twice = 0; twice < 2; ++twice)
      for (const Tensor& b : basis) v = v - at::dot(b, v) * b;
    const double size = v.norm().item<double>();
    if (!(size > 1e-12)) break;
    v = v / size;
    const Tensor out = place->product(outside(v)).view({left.size(0), right.size(0)});
    basis.push_back(v), images.push_back(at::matmul(left.mT(), at::matmul(out, right)).flatten());
    v = images.back();
  }
  const Tensor V = at::stack(basis), projected = at::matmul(V, at::stack(images).mT());
  const auto [values, vectors] = at::linalg_eigh((projected + projected.mT()) / 2);
  const Tensor lowest = unit_size(objective, outside(at::matmul(V.mT(), vectors.select(1, 0)).contiguous()));
  std::vector<Tensor> candidates;
  for (double power = -3; power <= 4; power += .5) candidates.push_back(std::exp2(power) * lowest);
  return best_of(objective, candidates);
}

// Least squares of asinh(scale B), at several scales. A row over its sum has that sum's sign, which the target does not
// tell: signs that agree with the X they give, from the direction along which the rows' fits spread most.
Tensor odd_start(const MatrixObjective& objective, const MatrixData& data, const MatrixSettings& settings) {
  RESCALED_CHECK(VALUE, data.point.target.defined(), "solve_matrix_regression",
                 "X0 with kind 'sinh' and a target that is not a dense B, got none");
  std::vector<Tensor> candidates;
  const Grams& grams = objective.grams();
  const Tensor by_row = pseudo_inverse(grams.left), by_key = pseudo_inverse(grams.right);
  const Tensor A1 = data.A1.flatten(0, -2);
  const auto summed = [&](const Tensor& a, const Tensor& b) { return wide(data.group.sum(at::matmul(a.mT(), b))); };
  for (int power = -2; power <= 12; power += 2) {
    const double scale = std::exp2(power);
    std::vector<Tensor> parts;
    for_blocks(data, settings.is_causal, [&](const Tensor& b, const Tensor& taken, int64_t, int64_t) {
      const Tensor typical = b.masked_fill(taken.logical_not(), 0).abs().mean(-1, /*keepdim=*/true).clamp_min(1e-30);
      parts.push_back(at::matmul(at::where(taken, (scale * b / typical).asinh(), 0.), data.point.key));
    });
    // Rows a_i^T X as each row's own fit has them.
    const Tensor fits = at::matmul(at::cat(parts, 1).flatten(0, -2), by_key.to(A1.options()));
    Tensor X;
    if (settings.form == "plain") {
      X = at::matmul(by_row, summed(A1, fits));
    } else {
      X = at::matmul(by_row, summed(A1, scattered(A1.size(0)).view({-1, 1}).to(A1.options()) * fits));
      for (int i = 0; i < kTurns; ++i) {
        const Tensor along = (at::matmul(A1, X.to(A1.options())) * fits).sum(-1, /*keepdim=*/true);
        X = at::matmul(by_row, summed(A1, (2 * i < kTurns ? along : along.sign()) * fits));
        const double size = X.norm().item<double>();
        if (2 * i < kTurns && size > 0) X = X / size;
      }
    }
    candidates.push_back(X.flatten()), candidates.push_back(-X.flatten());
  }
  return best_of(objective, candidates, /*by_angle=*/settings.form != "plain");
}

}  // namespace

Tensor scattered(int64_t size, int64_t first) {
  return (at::arange(first + 1, first + size + 1, at::kDouble).square() * 12.9898).sin();
}

Tensor matrix_start(const MatrixObjective& objective, const MatrixData& data, const MatrixSettings& settings) {
  if (settings.kind == "exp") return exponential_start(objective, data, settings);
  return settings.kind == "cosh" ? even_start(objective) : odd_start(objective, data, settings);
}

Tensor attention_start(const AttentionObjective& objective, const AttentionData& data) {
  std::vector<Tensor> directions = {scattered(objective.size())};
  const Grams& grams = objective.grams();
  // Every row attends to the keys like it.
  if (data.A1.size(-1) == data.A2.size(-1)) directions.push_back(pseudo_inverse(grams.left + grams.right).flatten());
  // Near X = 0 outputs are means of values and covariances of values and keys times X^T a: the X that gives B so, with
  // the Y that would take a row's own value to B.
  if (data.A1.size(1) == data.A3.size(1)) {
    const auto gram = [&](const Tensor& a, const Tensor& b) {
      return wide(data.group.sum(at::matmul(a.mT(), b).sum(0)));
    };
    const Tensor rows = data.A3.expand({data.A1.size(0), data.A3.size(1), data.A3.size(2)});
    const Tensor Y = at::matmul(pseudo_inverse(gram(rows, rows)), gram(rows, data.B));
    const Tensor turn =
        at::matmul(pseudo_inverse(grams.left), gram(data.A1, data.B - data.B.mean(1, /*keepdim=*/true)));
    const Tensor centered = data.A3 - data.A3.mean(1, /*keepdim=*/true);
    const Tensor seen = at::matmul(wide(at::matmul(data.A2.mT(), centered).sum(0)), Y);  // [d2, dv]
    directions.push_back(
        at::matmul(turn, at::matmul(pseudo_inverse(at::matmul(seen.mT(), seen)), seen.mT())).flatten());
  }
  std::vector<Tensor> candidates;
  for (const Tensor& direction : directions)
    for (const double size : {.5, 1., 2.}) candidates.push_back(size * unit_size(objective, direction));
  return best_of(objective, candidates);
}

}  // namespace torch_rescaled::solvers
