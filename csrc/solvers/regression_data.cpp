// SPDX-License-Identifier: BSD-3-Clause
#include "regression_data.h"

#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "../ops/regression/primitives.h"

namespace torch_rescaled::solvers {

using namespace rescaled::ops;
using Numbers = rescaled::RegressionStatistics;

Tensor RegressionData::matvec(const Tensor& v) const { return regression_matvec(problem_.design(), v); }

RegressionData::Evaluation RegressionData::evaluate(const Tensor& x, const RegressionSettings& settings) const {
  RegressionPoint here = problem_;
  here.x = x;
  const auto [statistics, gradient] = regression_evaluate(here, settings);
  return {numbers<Numbers::count>(statistics), wide(gradient)};
}

RegressionCurvature RegressionData::curvature(const Tensor& rows, double square, c10::string_view curvature) const {
  Tensor statistics = at::zeros({Numbers::count}, rows.options().dtype(at::kDouble));
  statistics[Numbers::square].fill_(square);
  const RegressionCurvature found = regression_curvature(problem_.design(), rows, statistics, curvature);
  return {wide(found.gradient), wide(found.hessian), wide(found.noise)};
}

RegressionCurvature RegressionData::weighted_gram(const Tensor& right, const Tensor& weight, const Tensor& p,
                                                  double square) const {
  const Tensor zero = at::zeros_like(weight);
  return curvature(at::stack({right, weight, zero, p, zero, zero, zero}), square, "gauss_newton");
}

Tensor RegressionData::statistics(const Tensor& logits, const Tensor& direction, const Tensor& steps,
                                  const RegressionSettings& settings) const {
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
ModelNumbers RegressionData::model(const Tensor& vectors, const Tensor& direction) const {
  return numbers<rescaled::RegressionModel::count>(regression_model(vectors, direction));
}

}  // namespace torch_rescaled::solvers
