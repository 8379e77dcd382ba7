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

// Of some rows of every matrix, what their Hessian diag(D) - p q^T - q p^T + square p p^T is made of: arrays of these
// rows of the map. p, q are scaled by e^-shift, D by e^-2 shift.
struct MatrixCurvature {
  Tensor diagonal, p, q, square, shift;  // [*L, r, n2] three times, [*L, r, 1] twice
};
MatrixCurvature plain_matrix_curvature(const MatrixPoint&, const Tensor& rows, const MatrixSettings&, bool full);

// Statistics by name (kernels/matrix_regression/parameters.h): [*L, n1] each.
struct MatrixNumbers {
  Tensor reference, sum, beta, square, loss;
};
MatrixNumbers matrix_numbers(const Tensor& statistics);
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
// A point of these rows alone, an index [r]; settings that fit it: not causal, no sparse target.
MatrixPoint rows_of(const MatrixPoint&, const Tensor& rows, MatrixSettings&);

Tensor plain_matrix_jvp(const MatrixPoint& tangents, const MatrixPoint&, const MatrixSettings&);
// Gradients not needed are undefined: query, key, target.
struct MatrixDoubleBackward {
  Tensor tangent_loss;
  MatrixPoint gradients;
};
MatrixDoubleBackward plain_matrix_double_backward(const MatrixPoint& tangents, const Tensor& grad_loss,
                                                  const MatrixPoint&, const MatrixSettings&, std::array<bool, 4> need);

}  // namespace rescaled::ops
