// SPDX-License-Identifier: BSD-3-Clause
// What the public operators of a dense and of a sparse A share; `op` is the name that refusals give.
#pragma once
#include "problem.h"

namespace rescaled::ops {

using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

Tensor public_loss(const char* op, const RegressionPoint&, const RegressionSettings&);
// log_loss, gradient, hessian, log_scale
Four public_evaluate(const char* op, const RegressionPoint&, const RegressionSettings&, c10::string_view curvature);
Tensor public_hvp(const char* op, const RegressionPoint&, const Tensor& v, const RegressionSettings&,
                  c10::string_view curvature);

}  // namespace rescaled::ops
