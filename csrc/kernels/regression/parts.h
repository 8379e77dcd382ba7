// SPDX-License-Identifier: BSD-3-Clause
// A pass over some of a problem's rows, its sums not finished: finished numbers are centered by the unit of those rows
// alone, and could not be joined near the solution without losing all their digits.
#pragma once
#include "parameters.h"

namespace rescaled {

// What sums.h adds up, float64: numbers, [count].
struct RegressionPart {
  enum : int64_t {
    empty,  // 1: no rows
    exponent,
    largest,
    center,
    u,
    absolute,
    target,
    residual,
    square,
    target_square,
    penalty,
    count
  };
  // Sums over rows of a coefficient times the row of A, [vectors, d]: du e, du row_weight b, du, penalty_weight^2 z.
  enum : int64_t { vector_lead, vector_target, vector_plain, vector_penalty, vectors };
};

// A Gram's parts, float64: A^T of the vectors `gradient`, p, q and noise (RegressionRows), [count, d], beside
// A^T diag(D) A.
struct RegressionSides {
  enum : int64_t { gradient, p, q, noise, count };
};

struct RegressionPartKernels {
  RegressionProgram (*evaluate)(const RegressionParameters&);    // statistics: a part's numbers; vector: its vectors
  RegressionProgram (*statistics)(const RegressionParameters&);  // statistics: [., K, RegressionPart::count]
  RegressionProgram (*gram)(const RegressionParameters&);        // vector: the sides; hessian: the Gram, float64
};
const RegressionPartKernels& regression_part_cpu_kernels();

// Joins parts [parts] `stride` numbers apart, each its numbers and then its vectors, in their order: statistics
// (RegressionStatistics) and gradient [columns], scaled as the loss is. No gradient: parts are numbers alone.
void join_regression_parts(const double* parts, int64_t count, int64_t stride, int64_t columns, Form form,
                           double* statistics, double* gradient);

}  // namespace rescaled
