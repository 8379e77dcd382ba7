// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "problem.h"

namespace rescaled::ops {

// Of the public operators, whose tensors broadcast: dtypes, devices, shapes, names.
void check_regression(const char* op, const RegressionPoint&, const RegressionSettings&);
// Refuses indices of a sparse A that lead outside: reads them all.
void check_indices(const char* op, const Design&);
// The same with v [*, d], and a curvature's name.
void check_curvature(const char* op, c10::string_view curvature, bool with_none);
void check_direction(const char* op, const RegressionPoint&, const Tensor& v);

// Of the primitives, whose tensors have the same number of leading dimensions.
void check_regression_point(const char* op, const RegressionPoint&, const RegressionSettings&);
void check_regression_product(const RegressionPoint&, const Tensor& v, const RegressionSettings&,
                              c10::string_view curvature);
void check_regression_matvec(const Design& A, const Tensor& v);
void check_regression_transposed(const Design& A, const Tensor& weights);
void check_resident(const Tensor& logits, const RegressionPoint&, const RegressionSettings&);
// Tangents and the saved gradient: of the shape and type of what they belong to.
void check_regression_tangents(const char* op, const RegressionPoint&, const RegressionPoint& tangents);

}  // namespace rescaled::ops
