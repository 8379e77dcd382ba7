// SPDX-License-Identifier: BSD-3-Clause
// The regression family as C++ calls through the dispatcher (schemas: ../library.cpp).
#pragma once
#include "problem.h"

namespace rescaled::ops {

using Two = std::tuple<Tensor, Tensor>;
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Five = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using RegressionForward = Two(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN);
using RegressionBackward = Five(const MaybeTensor& grad_loss, RESCALED_REGRESSION, const Tensor& gradient,
                                RESCALED_REGRESSION_SETTINGS, std::array<bool, 5> need, RESCALED_PATTERN);
using RegressionJvp = Tensor(RESCALED_REGRESSION_TANGENTS, RESCALED_REGRESSION, const Tensor& gradient,
                             RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN);
using RegressionSecond = Six(RESCALED_REGRESSION_TANGENTS, const MaybeTensor& grad_loss, RESCALED_REGRESSION,
                             const Tensor& gradient, RESCALED_REGRESSION_SETTINGS, std::array<bool, 6> need,
                             RESCALED_PATTERN);
using RegressionGaussNewton = Three(const Tensor& A, const Tensor& b, const Tensor& x, const MaybeTensor& row_weight,
                                    RESCALED_REGRESSION_SETTINGS);
using RegressionProduct = Tensor(RESCALED_REGRESSION, const Tensor& v, RESCALED_REGRESSION_SETTINGS,
                                 c10::string_view curvature, RESCALED_PATTERN);

// (loss, gradient in x)
Two regression_forward(const RegressionPoint&, const RegressionSettings&);
// (statistics, scaled gradient): no derivative
Two regression_evaluate(const RegressionPoint&, const RegressionSettings&);
// (statistics, scaled gradient, scaled Hessian of Gauss-Newton), without a penalty: no derivative
Three regression_gauss_newton(const RegressionPoint&, const RegressionSettings&);
// Hessian product: no derivative
Tensor regression_product(const RegressionPoint&, const Tensor& v, const RegressionSettings&,
                          c10::string_view curvature);

}  // namespace rescaled::ops
