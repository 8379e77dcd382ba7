// SPDX-License-Identifier: BSD-3-Clause
// The row side of a regression: everything that depends on A and x through the logits z = A x alone, as formulas on
// tensors of n numbers. Any device, differentiable to any order. Numbers: docs/math.md (7).
#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/ops/sum.h>

#include "problem.h"

namespace rescaled::ops {

// Undefined tensors are zero.
inline Tensor plus(const Tensor& a, const Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }
inline Tensor product(const Tensor& a, const Tensor& b) { return a.defined() && b.defined() ? a * b : Tensor(); }
inline Tensor row_sum(const Tensor& t) { return t.sum(-1, /*keepdim=*/true); }
inline Tensor row_dot(const Tensor& a, const Tensor& b) {
  return a.defined() && b.defined() ? row_sum(a * b) : Tensor();
}

// logits, b, row_weight, penalty_weight: [*, n] in the type of the arithmetic; the weights may be undefined.
// Gradients and tangents of them have the same names. mask: bool, broadcastable to [*, n]; what it hides takes no part
// (there b must be 0).
struct Rows {
  Tensor logits, b, row_weight, penalty_weight, mask = {};
};

// phi(z) and phi'(z), scaled by e^-shift.
std::pair<Tensor, Tensor> scaled_phi(const Tensor& z, const Tensor& shift, const std::string& kind);

// Scaled by e^-shift, so that nothing overflows: u, du, c, unit, e and beta by one factor of it, in the normalized form
// by none (there shift is 0 and u, du are divided by the sum of u).
struct RowValues {
  Tensor shift;              // [*, 1], a constant for every derivative
  Tensor u, du;              // phi(z), phi'(z)
  Tensor unit;               // [*, 1] what b is multiplied by
  Tensor c, weighted, beta;  // u - unit b; row_weight c; [*, 1] what is subtracted from `weighted` in the gradient
  Tensor sum;                // [*, 1] of u before the division; log|sum u| = log|sum| + sum_shift
  Tensor sum_shift;          // [*, 1]
};
RowValues row_values(const Rows&, const RegressionSettings&);

// 1/2 sum row_weight c^2 [*, 1], scaled by e^(-2 shift); and 1/2 sum (penalty_weight z)^2, not scaled.
Tensor scaled_loss(const RowValues&);
Tensor penalty(const Rows&);

// Of the loss without the penalty, scaled by e^(-2 shift).
Rows row_gradient(const Rows&, const RowValues&, const RegressionSettings&);
// The derivative of row_gradient along `tangents`.
Rows row_gradient_tangent(const Rows&, const RowValues&, const Rows& tangents, const RegressionSettings&);
// The same two of the penalty, not scaled; undefined where there is none.
Rows penalty_gradient(const Rows&);
Rows penalty_gradient_tangent(const Rows&, const Rows& tangents);

}  // namespace rescaled::ops
