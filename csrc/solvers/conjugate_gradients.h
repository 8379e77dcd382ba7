// SPDX-License-Identifier: BSD-3-Clause
// Systems of many problems side by side, for derivatives of solutions.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

namespace torch_rescaled::solvers {

struct CgSettings {
  double tolerance;       // of the residual, relative to v, as the preconditioner measures: more is not aimed at
  double acceptable;      // where rounding ends the descent before
  int64_t most_products;  // each waits for the device once
};

// H^-1 v, [*, d] float64, each H symmetric and positive definite, by products with all of them and preconditioners.
// NaN where the residual does not become acceptable, or where H shows not to be positive definite before it does.
at::Tensor conjugate_gradients(const std::function<at::Tensor(const at::Tensor&)>& product,
                               const std::function<at::Tensor(const at::Tensor&)>& precondition, const at::Tensor& v,
                               const CgSettings&);

}  // namespace torch_rescaled::solvers
