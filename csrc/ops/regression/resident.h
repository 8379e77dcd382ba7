// SPDX-License-Identifier: BSD-3-Clause
// What a Newton iteration does, with the logits z = A x and the direction's t = A s resident: two reads of A
// (curvature, matvec), and passes over vectors of n numbers. Operators of the dispatcher; the solver is made of them.
//
// A [*L, n, d]; logits, direction, b, row_weight, penalty_weight [*L, n] in A's arithmetic type.
#pragma once
#include "../../kernels/regression/parameters.h"
#include "problem.h"

namespace rescaled::ops {

// [*L, n, d], [*L, d] -> A v [*L, n]
Tensor regression_matvec(const Design& A, const Tensor& v);

// [*L, n, d], [*L, K, n] -> A^T of each of the K [*L, K, d]; `squared`: of A's elements squared. One read of A.
Tensor regression_transposed(const Design& A, const Tensor& weights, bool squared = false);

// The numbers of a point (RegressionStatistics), float64, at z + steps[k] t for every k: [*L, K, count]; at z alone (no
// direction, no steps) with K = 1.
Tensor regression_statistics(const Tensor& logits, const Tensor& direction, const Tensor& steps, const RegressionPoint&,
                             const RegressionSettings&);

// The vectors of a point (RegressionRows), [*L, count, n]; `statistics` [*L, count] are its numbers.
Tensor regression_rows(const Tensor& logits, const Tensor& statistics, const RegressionPoint&,
                       const RegressionSettings&);

// Logits [*L, n], statistics and rows at a point's x.
struct ResidentPoint {
  Tensor logits, statistics, rows;
};
ResidentPoint resident_point(const RegressionPoint&, const RegressionSettings&);

// The second-order model along a direction (RegressionModel), float64 [*L, count].
Tensor regression_model(const Tensor& rows, const Tensor& direction);

// One read of A: gradient [*L, d], Hessian [*L, d, d] by curvature "gauss_newton", "clipped" (negative diagonal_rest
// set to 0) or "full", and noise [*L, d], the squares of the gradient's rounding errors over eps^2.
struct RegressionCurvature {
  Tensor gradient, hessian, noise;
};
RegressionCurvature regression_curvature(const Design& A, const Tensor& rows, const Tensor& statistics,
                                         c10::string_view curvature);

}  // namespace rescaled::ops
