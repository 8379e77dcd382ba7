// SPDX-License-Identifier: BSD-3-Clause
// The regression family on every device: a call of the kernels where they give the answer in one read of A, plain
// formulas for the rest (docs/math.md (7)).
#include "primitives.h"

#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "../../kernels/regression/parameters.h"
#include "checks.h"
#include "plain.h"
#include "resident.h"

namespace rescaled::ops {
namespace {

#define POINT_ARGUMENTS x.A, x.b, x.x, maybe(x.row_weight), maybe(x.penalty_weight)
#define PATTERN_ARGUMENTS maybe(x.pattern.crow_indices), maybe(x.pattern.col_indices)

Two forward(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN) {
  const RegressionPoint point = RESCALED_THE_REGRESSION;
  check_regression_point("_regression_forward", point, RESCALED_THE_REGRESSION_SETTINGS);
  const auto [statistics, gradient] = regression_evaluate(point, RESCALED_THE_REGRESSION_SETTINGS);
  const Tensor log_scale = statistics.select(-1, RegressionStatistics::log_scale);
  const at::ScalarType type = accumulation_type(A);
  return {unscaled(statistics.select(-1, RegressionStatistics::loss), log_scale).to(type),
          unscaled(gradient, log_scale).to(type)};
}

Five backward(const MaybeTensor& grad_loss, RESCALED_REGRESSION, const Tensor& gradient, RESCALED_REGRESSION_SETTINGS,
              std::array<bool, 5> need, RESCALED_PATTERN) {
  const RegressionPoint point = RESCALED_THE_REGRESSION;
  check_regression_point("_regression_backward", point, RESCALED_THE_REGRESSION_SETTINGS);
  RegressionPoint d;
  if (grad_loss.has_value()) {
    std::array<bool, 5> others = need;
    others[2] = false;
    if (others != std::array<bool, 5>{})
      d = plain_regression_backward(*grad_loss, point, RESCALED_THE_REGRESSION_SETTINGS, others);
    if (need[2]) d.x = (grad_loss->unsqueeze(-1) * gradient).sum_to_size_symint(x.sym_sizes());
  }
  return {finished(need[0], d.A, A, A), finished(need[1], d.b, b, b), finished(need[2], d.x, x, b),
          finished(need[3], d.row_weight, point.row_weight, b),
          finished(need[4], d.penalty_weight, point.penalty_weight, b)};
}

bool only_x(const RegressionPoint& tangents) {
  return tangents.x.defined() && !tangents.A.defined() && !tangents.b.defined() && !tangents.row_weight.defined() &&
         !tangents.penalty_weight.defined();
}

Tensor jvp(RESCALED_REGRESSION_TANGENTS, RESCALED_REGRESSION, const Tensor& gradient, RESCALED_REGRESSION_SETTINGS,
           RESCALED_PATTERN) {
  const RegressionPoint tangents = RESCALED_THE_REGRESSION_TANGENTS, point = RESCALED_THE_REGRESSION;
  check_regression_point("_regression_jvp", point, RESCALED_THE_REGRESSION_SETTINGS);
  check_regression_tangents("_regression_jvp", point, tangents);
  if (only_x(tangents)) return (gradient * tangents.x).sum(-1);
  return plain_regression_jvp(tangents, point, RESCALED_THE_REGRESSION_SETTINGS).contiguous();
}

Six double_backward(RESCALED_REGRESSION_TANGENTS, const MaybeTensor& grad_loss, RESCALED_REGRESSION,
                    const Tensor& gradient, RESCALED_REGRESSION_SETTINGS, std::array<bool, 6> need, RESCALED_PATTERN) {
  const RegressionPoint tangents = RESCALED_THE_REGRESSION_TANGENTS, point = RESCALED_THE_REGRESSION;
  const RegressionSettings settings = RESCALED_THE_REGRESSION_SETTINGS;
  check_regression_point("_regression_double_backward", point, settings);
  check_regression_tangents("_regression_double_backward", point, tangents);
  RegressionDoubleBackward d;
  std::array<bool, 6> rest = need;
  if (only_x(tangents)) {  // one read of A
    if (need[0]) d.tangent_loss = (gradient * tangents.x).sum(-1);
    if (need[3] && grad_loss.has_value())
      d.gradients.x = (grad_loss->unsqueeze(-1) * regression_product(point, tangents.x, settings, "full"))
                          .sum_to_size_symint(x.sym_sizes());
    rest[0] = rest[3] = false;
  }
  if (rest != std::array<bool, 6>{}) {
    const RegressionDoubleBackward other =
        plain_regression_double_backward(tangents, defined_or(grad_loss), point, settings, rest);
    RegressionPoint& to = d.gradients;
    const RegressionPoint& from = other.gradients;
    if (rest[0]) d.tangent_loss = other.tangent_loss;
    if (rest[3]) to.x = from.x;
    to.A = from.A, to.b = from.b, to.row_weight = from.row_weight, to.penalty_weight = from.penalty_weight;
  }
  const Tensor number = gradient.select(-1, 0);
  const RegressionPoint& g = d.gradients;
  return {finished(need[0], d.tangent_loss, number, b),
          finished(need[1], g.A, A, A),
          finished(need[2], g.b, b, b),
          finished(need[3], g.x, x, b),
          finished(need[4], g.row_weight, point.row_weight, b),
          finished(need[5], g.penalty_weight, point.penalty_weight, b)};
}

Two evaluate(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN) {
  check_regression_point("_regression_evaluate", RESCALED_THE_REGRESSION, RESCALED_THE_REGRESSION_SETTINGS);
  return plain_regression_evaluate(RESCALED_THE_REGRESSION, RESCALED_THE_REGRESSION_SETTINGS);
}

Three gauss_newton(const Tensor& A, const Tensor& b, const Tensor& x, const MaybeTensor& row_weight,
                   RESCALED_REGRESSION_SETTINGS) {
  const RegressionPoint point{A, b, x, defined_or(row_weight), {}};
  check_regression_point("_regression_gauss_newton", point, RESCALED_THE_REGRESSION_SETTINGS);
  return plain_regression_gauss_newton(point, RESCALED_THE_REGRESSION_SETTINGS);
}

Tensor product(RESCALED_REGRESSION, const Tensor& v, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature,
               RESCALED_PATTERN) {
  check_regression_product(RESCALED_THE_REGRESSION, v, RESCALED_THE_REGRESSION_SETTINGS, curvature);
  return plain_regression_product(RESCALED_THE_REGRESSION, v, RESCALED_THE_REGRESSION_SETTINGS, curvature);
}

}  // namespace

Two regression_forward(const RegressionPoint& x, const RegressionSettings& settings) {
  static const auto op = handle<RegressionForward>("torch_rescaled::_regression_forward");
  return op.call(POINT_ARGUMENTS, settings.kind, settings.form, PATTERN_ARGUMENTS);
}
Two regression_evaluate(const RegressionPoint& x, const RegressionSettings& settings) {
  static const auto op = handle<RegressionForward>("torch_rescaled::_regression_evaluate");
  return op.call(POINT_ARGUMENTS, settings.kind, settings.form, PATTERN_ARGUMENTS);
}
Three regression_gauss_newton(const RegressionPoint& x, const RegressionSettings& settings) {
  if (x.pattern.sparse()) return plain_regression_gauss_newton(x, settings);
  static const auto op = handle<RegressionGaussNewton>("torch_rescaled::_regression_gauss_newton");
  return op.call(x.A, x.b, x.x, maybe(x.row_weight), settings.kind, settings.form);
}
Tensor regression_product(const RegressionPoint& x, const Tensor& v, const RegressionSettings& settings,
                          c10::string_view curvature) {
  static const auto op = handle<RegressionProduct>("torch_rescaled::_regression_product");
  return op.call(POINT_ARGUMENTS, v, settings.kind, settings.form, curvature, PATTERN_ARGUMENTS);
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  using namespace rescaled::ops;
  m.impl("_regression_forward", TORCH_FN(forward));
  m.impl("_regression_backward", TORCH_FN(backward));
  m.impl("_regression_jvp", TORCH_FN(jvp));
  m.impl("_regression_double_backward", TORCH_FN(double_backward));
  m.impl("_regression_evaluate", TORCH_FN(evaluate));
  m.impl("_regression_gauss_newton", TORCH_FN(gauss_newton));
  m.impl("_regression_product", TORCH_FN(product));
}
