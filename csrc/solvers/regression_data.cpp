// SPDX-License-Identifier: BSD-3-Clause
#include "regression_data.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

#include "../ops/regression/design.h"
#include "../ops/regression/parts.h"
#include "../ops/regression/primitives.h"

namespace torch_rescaled::solvers {

using namespace rescaled::ops;
using Numbers = rescaled::RegressionStatistics;

RegressionCurvature hosted(const RegressionCurvature& c) {
  if (c.hessian.is_cpu()) return {wide(c.gradient), wide(c.hessian), wide(c.noise)};
  const int64_t d = c.gradient.size(0);  // one copy: each waits for the device
  const Tensor all = wide(at::cat({c.gradient, c.noise, c.hessian.flatten()}));
  return {all.slice(0, 0, d), all.slice(0, 2 * d).view({d, d}), all.slice(0, d, 2 * d)};
}

RegressionData::RegressionData(const RegressionPoint& problem, const Group& group)
    : problem_(problem), group_(group), rows_(problem.b.numel()) {
  if (!group.single()) rows_ = static_cast<int64_t>(sum(number_of(static_cast<double>(rows_))).item<double>());
}

SolveMethod RegressionData::agreed(SolveMethod here, double& gram_ratio) const {
  if (group_.single()) return here;
  const double ratio = wide(group_.largest(number_of(std::isnan(gram_ratio) ? -1 : gram_ratio))).item<double>();
  gram_ratio = ratio < 0 ? std::numeric_limits<double>::quiet_NaN() : ratio;
  return ratio > 1 ? SolveMethod::lbfgs : SolveMethod::newton;
}

Tensor RegressionData::number_of(double x) const { return at::full({1}, x, options().dtype(at::kDouble)); }

Tensor RegressionData::matvec(const Tensor& v) const { return regression_matvec(problem_.design(), v); }

RegressionData::Evaluation RegressionData::evaluate(const Tensor& x, const RegressionSettings& settings) const {
  RegressionPoint here = problem_;
  here.x = x;
  if (!group_.single()) {
    const Tensor part = regression_part(here, settings),
                 all = wide(group_.gathered(at::cat({part, x.to(at::kDouble)})));
    const int64_t size = part.size(0);
    const auto [statistics, gradient] = join_parts(all.slice(1, 0, size).contiguous(), settings);
    return {numbers<Numbers::count>(statistics), gradient, all[0].slice(0, size).to(x.options())};
  }
  const auto [statistics, gradient] = regression_evaluate(here, settings);
  const Tensor all = wide(at::cat({statistics, gradient}));  // one copy: each waits for a device
  return {numbers<Numbers::count>(all), all.slice(0, Numbers::count), x};
}

RegressionCurvature RegressionData::curvature_here(const Tensor& rows, const Tensor& statistics,
                                                   c10::string_view curvature) const {
  if (!group_.single()) {
    const RegressionGram part = regression_part_gram(problem_.design(), rows, curvature);
    const Tensor all = wide(group_.sum(at::cat({part.sides, part.gram})));
    const int64_t sides = part.sides.size(0);
    return finished_gram({all.slice(0, 0, sides), all.slice(0, sides)},
                         wide(statistics[Numbers::square]).item<double>());
  }
  const RegressionCurvature found = regression_curvature(problem_.design(), rows, statistics, curvature);
  return {found.gradient.to(at::kDouble), found.hessian.to(at::kDouble), found.noise.to(at::kDouble)};
}

RegressionCurvature RegressionData::curvature(const Tensor& rows, double square, c10::string_view curvature) const {
  Tensor statistics = at::zeros({Numbers::count}, rows.options().dtype(at::kDouble));
  statistics[Numbers::square].fill_(square);
  return hosted(curvature_here(rows, statistics, curvature));
}

RegressionCurvature RegressionData::weighted_gram(const Tensor& right, const Tensor& weight, const Tensor& p,
                                                  double square) const {
  const Tensor zero = at::zeros_like(weight);
  return curvature(at::stack({right, weight, zero, p, zero, zero, zero}), square, "gauss_newton");
}

Tensor RegressionData::transposed(const Tensor& vectors, bool squared) const {
  return wide(regression_transposed(problem_.design(), vectors, squared));
}

RegressionPoint RegressionData::gathered(const Tensor& index) const {
  const Design rows = selected_rows(problem_.design(), index);
  return {rows.A, {}, {}, {}, {}, rows.pattern};
}

Tensor RegressionData::products(const Tensor& vectors) const {
  constexpr int64_t kBlock = 1 << 14;  // rows of A in the type of the arithmetic at a time
  const int64_t n = problem_.b.size(0);
  const Tensor out = at::empty({vectors.size(1), n}, options());
  if (problem_.pattern.sparse()) {
    for (int64_t k = 0; k < vectors.size(1); ++k) out[k].copy_(matvec(vectors.select(1, k).contiguous()));
    return out;
  }
  for (int64_t i = 0; i < n; i += kBlock) {
    const Tensor block = problem_.A.slice(0, i, i + kBlock).to(problem_.b.scalar_type());
    out.slice(1, i, i + kBlock).copy_(at::matmul(block, vectors).mT());
  }
  return out;
}

Tensor RegressionData::row_sizes(const Tensor& center, const Tensor& metric) const {
  constexpr int64_t kBlock = 1 << 18;  // elements of A at a time: what is made of them stays in the cache
  const int64_t n = problem_.b.size(0), rows = std::max<int64_t>(kBlock / std::max<int64_t>(columns(), 1), 64);
  const Tensor to = metric.defined() ? metric.to(options()) : metric;
  const Tensor from = (metric.defined() ? at::matmul(metric.mT(), center) : center).to(options());
  if (problem_.pattern.sparse()) {
    if (to.defined()) return (products(to) - from.unsqueeze(-1)).square_().sum(0).to(at::kDouble);
    const Tensor values = problem_.A.to(problem_.b.scalar_type());
    const Tensor squares = regression_matvec({values.square(), problem_.pattern}, at::ones_like(from));
    return (squares - 2 * matvec(from) + from.square().sum()).clamp_min_(0).to(at::kDouble);
  }
  Tensor out = at::empty({n}, options().dtype(at::kDouble));
  for (int64_t i = 0; i < n; i += rows) {
    const Tensor block = problem_.A.slice(0, i, i + rows).to(problem_.b.scalar_type());
    const Tensor off = (to.defined() ? at::matmul(block, to) : block) - from;
    out.slice(0, i, i + rows).copy_(off.square_().sum(-1));
  }
  return out;
}

Tensor RegressionData::product(const Tensor& x, const Tensor& v, const Point& point, const RegressionSettings& settings,
                               c10::string_view curvature) const {
  RegressionPoint here = problem_;
  here.x = x;
  const Tensor scaled = (v * std::exp(-point[Numbers::log_scale])).to(options());
  return wide(regression_product(here, scaled, settings, curvature));
}

Tensor RegressionData::squares(const Tensor& logits, const Point& point, const RegressionSettings& settings) const {
  if (settings.form == "plain") return {};
  Tensor v = problem_.b;
  if (settings.form == "normalized") {
    // u over its sum, by logarithms: either may be beyond the type's range.
    const Tensor z = settings.kind == "exp" ? logits : logits.abs(), beside = (-2 * z).exp();
    v = (z - point[Numbers::log_sum]).exp();
    if (settings.kind != "exp") v = v * (settings.kind == "cosh" ? 1 + beside : 1 - beside) / 2;
  }
  const Tensor square = v.square();
  return problem_.row_weight.defined() ? problem_.row_weight * square : square;
}

Tensor RegressionData::statistics(const Tensor& logits, const Tensor& direction, const Tensor& steps,
                                  const RegressionSettings& settings) const {
  if (!group_.single())
    return join_part_statistics(
        wide(group_.gathered(regression_part_statistics(logits, direction, steps, problem_, settings))), settings);
  return wide(regression_statistics(logits, direction, steps, problem_, settings));
}
Tensor RegressionData::losses_along(const Tensor& t, const Tensor& steps, const RegressionSettings& settings) const {
  const Tensor s = statistics(at::zeros_like(t), t, steps, settings);
  const Tensor losses = s.select(-1, Numbers::loss).log() + s.select(-1, Numbers::log_scale);
  return at::where(losses.isfinite(), losses, std::numeric_limits<double>::infinity());
}
Point RegressionData::point(const Tensor& logits, const RegressionSettings& settings) const {
  return numbers<Numbers::count>(statistics(logits, {}, {}, settings));
}
Point RegressionData::point(const Tensor& logits, const Tensor& direction, double step,
                            const RegressionSettings& settings) const {
  const Tensor steps = at::full({1}, step, logits.options().dtype(at::kDouble));
  return numbers<Numbers::count>(statistics(logits, direction, steps, settings));
}

Tensor RegressionData::statistics_of(const Point& point) const {
  return at::tensor(at::ArrayRef<double>(point.data(), point.size())).to(problem_.b.device(), /*non_blocking=*/true);
}
Tensor RegressionData::vectors(const Tensor& logits, const Tensor& statistics,
                               const RegressionSettings& settings) const {
  return regression_rows(logits, statistics, problem_, settings);
}
RegressionData::Ahead RegressionData::ahead(const Tensor& vectors, const Tensor& direction, Tensor& step,
                                            const std::function<Tensor(const Tensor& step)>& logits_after,
                                            const RegressionSettings& settings, const Tensor& others) const {
  using Model = rescaled::RegressionModel;
  const Tensor here = regression_model(vectors, direction);
  if (group_.single()) {
    const Tensor logits = logits_after(step),
                 whole = regression_statistics(logits, {}, {}, problem_, settings).flatten();
    const Tensor all = wide(others.defined() ? at::cat({here, whole, others}) : at::cat({here, whole}));
    constexpr int64_t known = int64_t{Model::count} + int64_t{Numbers::count};
    return {numbers<Model::count>(all), numbers<Numbers::count>(all.slice(0, Model::count)), logits, whole,
            all.slice(0, known)};
  }
  const Tensor parts = wide(group_.gathered(at::cat({here, step.to(at::kDouble)})));
  step = parts[0].slice(0, Model::count).to(step.options());
  ModelNumbers all{};
  for (const Tensor& part : parts.unbind()) {
    const ModelNumbers one = numbers<Model::count>(part);
    for (size_t i = 0; i < all.size(); ++i)
      if (i != Model::largest) all[i] += one[i];
    if (one[Model::largest] > all[Model::largest] || std::isnan(one[Model::largest]))
      all[Model::largest] = one[Model::largest];
  }
  const Tensor logits = logits_after(step);
  const Point whole = point(logits, settings);
  return {all, whole, logits, statistics_of(whole), {}};
}

}  // namespace torch_rescaled::solvers
