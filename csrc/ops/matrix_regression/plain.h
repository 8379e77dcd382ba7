// SPDX-License-Identifier: BSD-3-Clause
// Plain-tensor formulas of the matrix regression: any device, differentiable to any order, with arrays of the target's
// size. They serve devices without kernels, forward over forward and third order.
#pragma once
#include "problem.h"

namespace rescaled::ops {

using Two = std::tuple<Tensor, Tensor>;

// As the kernels of the same names give them: not differentiable.
Tensor plain_matrix_statistics(const MatrixPoint&, const MatrixSettings&);       // [*L, n1, count]
Tensor plain_matrix_gradient(const MatrixPoint&, const MatrixSettings&);         // [*L, n1, d]
Two plain_matrix_moments(const MatrixPoint&, const MatrixSettings&, bool full);  // [*L, n1, d] twice
Tensor plain_matrix_product(const MatrixPoint&, const Tensor& v, const MatrixSettings&, bool full);  // [*L, n1, d]

Tensor plain_matrix_tangents(const MatrixPoint& along, const MatrixPoint&, const MatrixSettings&);  // [*L, n1, 3]
Tensor plain_matrix_gradient_tangent(const MatrixPoint& along, const MatrixPoint&, const MatrixSettings&);
Tensor plain_matrix_columns(const Tensor& weight, const MatrixPoint& along, bool tangent, const MatrixPoint&,
                            const MatrixSettings&);  // [*L, n2, d]
Tensor plain_matrix_elements(const Tensor& weight, const MatrixPoint& along, bool tangent, const MatrixPoint&,
                             const MatrixSettings&);  // [*L, n1, n2]

// The losses of rows of these statistics, [*L, n1], and e^shift where those are scaled by e^-2 shift: [*L, n1, 1].
Tensor row_losses(const Tensor& statistics, const MatrixSettings&);
Tensor half_scale(const Tensor& statistics, const MatrixSettings&);

// The target of a point as a matrix; mask: of the elements that take part.
Tensor dense_target(const MatrixPoint&, const Tensor& logits, const Tensor& mask, const MatrixSettings&);

Tensor plain_matrix_jvp(const MatrixPoint& tangents, const MatrixPoint&, const MatrixSettings&);
// Gradients not needed are undefined: query, key, target.
struct MatrixDoubleBackward {
  Tensor tangent_loss;
  MatrixPoint gradients;
};
MatrixDoubleBackward plain_matrix_double_backward(const MatrixPoint& tangents, const Tensor& grad_loss,
                                                  const MatrixPoint&, const MatrixSettings&, std::array<bool, 4> need);

}  // namespace rescaled::ops
