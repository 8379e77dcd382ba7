// SPDX-License-Identifier: BSD-3-Clause
// Passes over a part of a problem's rows, and all parts joined (../../kernels/regression/parts.h). Arguments as in
// primitives.h and resident.h; everything that is returned is float64.
#pragma once
#include "../../kernels/regression/parts.h"
#include "problem.h"
#include "resident.h"

namespace rescaled::ops {

// One read of A: numbers and then vectors, [*L, RegressionPart::count + RegressionPart::vectors d].
Tensor regression_part(const RegressionPoint&, const RegressionSettings&);
// No read: [*L, K, RegressionPart::count].
Tensor regression_part_statistics(const Tensor& logits, const Tensor& direction, const Tensor& steps,
                                  const RegressionPoint&, const RegressionSettings&);
// One read (without a kernel two): parts that are added up.
struct RegressionGram {
  Tensor sides, gram;  // [*L, RegressionSides::count, d], [*L, d, d]
};
RegressionGram regression_part_gram(const Design& A, const Tensor& rows, c10::string_view curvature);

// Of all parts, on the CPU, in their order: parts [P, ...] as above, without leading dimensions of their own.
std::tuple<Tensor, Tensor> join_parts(const Tensor& parts, const RegressionSettings&);  // statistics, gradient [d]
Tensor join_part_statistics(const Tensor& parts, const RegressionSettings&);            // [K, count of statistics]
// `square`: of RegressionStatistics.
RegressionCurvature finished_gram(const RegressionGram& sums, double square);

// By tensor formulas.
Tensor plain_regression_part(const RegressionPoint&, const RegressionSettings&);
Tensor plain_regression_part_statistics(const Tensor& logits, const MaybeTensor& direction, const MaybeTensor& steps,
                                        RESCALED_TARGET, RESCALED_REGRESSION_SETTINGS);
std::tuple<Tensor, Tensor> plain_regression_part_gram(const Design& A, const Tensor& rows, c10::string_view curvature);

}  // namespace rescaled::ops
