// SPDX-License-Identifier: BSD-3-Clause
// The matrix regression's family as C++ calls through the dispatcher (schemas: ../library.cpp).
#pragma once
#include "plain.h"

namespace rescaled::ops {

using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using MatrixForward = Two(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS);
using MatrixStatistics = Tensor(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS);
using MatrixBackward = Three(const MaybeTensor& grad_loss, RESCALED_MATRIX, const Tensor& statistics,
                             RESCALED_MATRIX_SETTINGS, std::array<bool, 3> need);
using MatrixJvp = Tensor(RESCALED_MATRIX_TANGENTS, RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS);
using MatrixSecond = Four(RESCALED_MATRIX_TANGENTS, const MaybeTensor& grad_loss, RESCALED_MATRIX,
                          const Tensor& statistics, RESCALED_MATRIX_SETTINGS, std::array<bool, 4> need);
using MatrixGradient = Tensor(RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS);
using MatrixMoments = Two(RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS, bool full);
using MatrixProduct = Tensor(RESCALED_MATRIX, const Tensor& statistics, const Tensor& moment_p, const Tensor& moment_q,
                             const Tensor& direction, RESCALED_MATRIX_SETTINGS, bool full);
using MatrixTangents = Tensor(RESCALED_MATRIX_TANGENTS, RESCALED_MATRIX, const Tensor& statistics,
                              RESCALED_MATRIX_SETTINGS);
using MatrixGradientTangent = Tensor(RESCALED_MATRIX_TANGENTS, const Tensor& tangents, RESCALED_MATRIX,
                                     const Tensor& statistics, RESCALED_MATRIX_SETTINGS);
using MatrixColumns = Tensor(RESCALED_MATRIX_TANGENTS, const MaybeTensor& tangents, const Tensor& weight,
                             RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS);

// (losses of the rows, statistics)
Two matrix_forward(const MatrixPoint&, const MatrixSettings&);
// The rest has no derivative, and is scaled as the statistics are.
Tensor matrix_statistics(const MatrixPoint&, const MatrixSettings&);
Tensor matrix_gradient(const MatrixPoint&, const Tensor& statistics, const MatrixSettings&);
Two matrix_moments(const MatrixPoint&, const Tensor& statistics, const MatrixSettings&, bool full);
Tensor matrix_product(const MatrixPoint&, const Tensor& statistics, const Two& moments, const Tensor& direction,
                      const MatrixSettings&, bool full);
// Along (query, key, target): numbers of the rows, and from them the tangent of the gradient's rows.
Tensor matrix_tangents(const MatrixPoint& along, const MatrixPoint&, const Tensor& statistics, const MatrixSettings&);
Tensor matrix_gradient_tangent(const MatrixPoint& along, const Tensor& tangents, const MatrixPoint&,
                               const Tensor& statistics, const MatrixSettings&);

// What is summed over rows or belongs to elements, which have no scale of their own: with weight [*L, n1] of the rows,
// the gradient, or where `tangents` are defined its tangent.
struct MatrixWeighted {
  Tensor weight;
  MatrixPoint along = {};
  Tensor tangents = {};
};
Tensor matrix_columns(const MatrixWeighted&, const MatrixPoint&, const Tensor& statistics, const MatrixSettings&);
Tensor matrix_elements(const MatrixWeighted&, const MatrixPoint&, const Tensor& statistics, const MatrixSettings&);

}  // namespace rescaled::ops
