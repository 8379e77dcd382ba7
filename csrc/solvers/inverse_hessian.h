// SPDX-License-Identifier: BSD-3-Clause
// What the implicit function theorem asks of a solution: its Hessian's inverse.
#pragma once
#include "regression.h"

namespace torch_rescaled::solvers {

// H(x)^-1 v, [*L, d] as v: by the d x d matrix or, of a sparse A with many columns, by conjugate gradients on products.
// NaN where H is not finite (of a solve that failed), and by conjugate gradients where it is not positive definite or
// the residual stays above the root of the rounding unit.
Tensor inverse_hessian_times(const RegressionPoint& x, const RegressionSettings&, const Tensor& v);

}  // namespace torch_rescaled::solvers
