// SPDX-License-Identifier: BSD-3-Clause
// Plain-tensor formulas of the regression family: any device, differentiable to any order, vectors of n numbers beside
// what the results themselves take. They serve devices without kernels, derivatives in A, b and the weights, and third
// order.
#pragma once
#include "problem.h"

namespace rescaled::ops {

// e^log_scale t, also where e^log_scale alone would overflow; log_scale has t's leading dimensions.
Tensor unscaled(const Tensor& t, const Tensor& log_scale);

// As the kernels of the same names give them: scaled, not differentiable.
std::tuple<Tensor, Tensor> plain_regression_evaluate(const RegressionPoint&, const RegressionSettings&);
Tensor plain_regression_product(const RegressionPoint&, const Tensor& v, const RegressionSettings&,
                                c10::string_view curvature);
using Three = std::tuple<Tensor, Tensor, Tensor>;
Three plain_regression_gauss_newton(const RegressionPoint&, const RegressionSettings&);
Tensor plain_regression_matvec(const Design& A, const Tensor& v);
Tensor plain_regression_transposed(const Design& A, const Tensor& weights, bool squared);
Tensor plain_regression_statistics(const Tensor& logits, const MaybeTensor& direction, const MaybeTensor& steps,
                                   RESCALED_TARGET, RESCALED_REGRESSION_SETTINGS);
Tensor plain_regression_rows(const Tensor& logits, const Tensor& statistics, RESCALED_TARGET,
                             RESCALED_REGRESSION_SETTINGS);
Tensor plain_regression_model(const Tensor& rows, const Tensor& direction);
Three plain_regression_curvature(const Design& A, const Tensor& rows, const Tensor& statistics,
                                 c10::string_view curvature);

// (loss, gradient in x) [*L], [*L, d]
std::tuple<Tensor, Tensor> plain_regression_forward(const RegressionPoint&, const RegressionSettings&);
// Gradients of inputs that are undefined are too, and so are those not needed: A, b, x, row_weight, penalty_weight.
RegressionPoint plain_regression_backward(const Tensor& grad_loss, const RegressionPoint&, const RegressionSettings&,
                                          std::array<bool, 5> need);
Tensor plain_regression_jvp(const RegressionPoint& tangents, const RegressionPoint&, const RegressionSettings&);
struct RegressionDoubleBackward {
  Tensor tangent_loss;
  RegressionPoint gradients;
};
RegressionDoubleBackward plain_regression_double_backward(const RegressionPoint& tangents, const Tensor& grad_loss,
                                                          const RegressionPoint&, const RegressionSettings&,
                                                          std::array<bool, 6> need);

}  // namespace rescaled::ops
