// SPDX-License-Identifier: BSD-3-Clause
#include "regression_data.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

#include "../ops/regression/parts.h"
#include "../ops/regression/primitives.h"

namespace torch_rescaled::solvers {

using namespace rescaled::ops;
using Numbers = rescaled::RegressionStatistics;

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

Tensor RegressionData::matvec(const Tensor& v) const { return regression_matvec(problem_.A, v); }

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
  return {numbers<Numbers::count>(statistics), wide(gradient), x};
}

RegressionCurvature RegressionData::curvature(const Tensor& rows, double square, c10::string_view curvature) const {
  if (!group_.single()) {
    const RegressionGram part = regression_part_gram(problem_.A, rows, curvature);
    const Tensor all = wide(group_.sum(at::cat({part.sides, part.gram})));
    const int64_t sides = part.sides.size(0);
    return finished_gram({all.slice(0, 0, sides), all.slice(0, sides)}, square);
  }
  Tensor statistics = at::zeros({Numbers::count}, rows.options().dtype(at::kDouble));
  statistics[Numbers::square].fill_(square);
  const RegressionCurvature found = regression_curvature(problem_.A, rows, statistics, curvature);
  return {wide(found.gradient), wide(found.hessian), wide(found.noise)};
}

RegressionCurvature RegressionData::weighted_gram(const Tensor& right, const Tensor& weight, const Tensor& p,
                                                  double square) const {
  const Tensor zero = at::zeros_like(weight);
  return curvature(at::stack({right, weight, zero, p, zero, zero, zero}), square, "gauss_newton");
}

Tensor RegressionData::statistics(const Tensor& logits, const Tensor& direction, const Tensor& steps,
                                  const RegressionSettings& settings) const {
  if (!group_.single())
    return join_part_statistics(
        wide(group_.gathered(regression_part_statistics(logits, direction, steps, problem_, settings))), settings);
  return wide(regression_statistics(logits, direction, steps, problem_, settings));
}
Point RegressionData::point(const Tensor& logits, const RegressionSettings& settings) const {
  return numbers<Numbers::count>(statistics(logits, {}, {}, settings));
}
Point RegressionData::point(const Tensor& logits, const Tensor& direction, double step,
                            const RegressionSettings& settings) const {
  const Tensor steps = at::full({1}, step, logits.options().dtype(at::kDouble));
  return numbers<Numbers::count>(statistics(logits, direction, steps, settings));
}

Tensor RegressionData::vectors(const Tensor& logits, const Point& point, const RegressionSettings& settings) const {
  const Tensor statistics = at::tensor(at::ArrayRef<double>(point.data(), point.size())).to(logits.device());
  return regression_rows(logits, statistics, problem_, settings);
}
ModelNumbers RegressionData::model(const Tensor& vectors, const Tensor& direction, Tensor& step) const {
  using Model = rescaled::RegressionModel;
  const Tensor here = regression_model(vectors, direction);
  if (group_.single()) return numbers<Model::count>(here);
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
  return all;
}

}  // namespace torch_rescaled::solvers
