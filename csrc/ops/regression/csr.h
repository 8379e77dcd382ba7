// SPDX-License-Identifier: BSD-3-Clause
// The regression family of a sparse A by the CPU's kernels.
#pragma once
#include "problem.h"

namespace rescaled::ops {

// As the operators of these names, whose checks have passed. Indices that lead outside are an error.
std::tuple<Tensor, Tensor> csr_evaluate(const RegressionPoint&, const RegressionSettings&);
Tensor csr_product(const RegressionPoint&, const Tensor& v, const RegressionSettings&, c10::string_view curvature);
Tensor csr_matvec(const Design&, const Tensor& v);
Tensor csr_transposed(const Design&, const Tensor& weights, bool squared);
std::tuple<Tensor, Tensor, Tensor> csr_curvature(const Design&, const Tensor& rows, const Tensor& statistics,
                                                 c10::string_view curvature);

}  // namespace rescaled::ops
