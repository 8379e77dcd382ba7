// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "problem.h"

namespace rescaled::ops {

// Of the public operators, whose tensors broadcast: A1 [*, n1, d1], X [*, d1, d2], A2 [*, n2, d2], B [*, n1, n2].
struct MatrixArguments {
  Tensor A1, X, A2, B, attn_mask;
};
void check_matrix_regression(const char* op, const MatrixArguments&, const MatrixSettings&);
void check_matrix_direction(const char* op, const MatrixArguments&, const Tensor& V);
// True for the Hessian, false for Gauss-Newton.
bool check_matrix_curvature(const char* op, c10::string_view curvature);

// Of the primitives, whose tensors have the same number of leading dimensions.
void check_matrix_point(const char* op, const MatrixPoint&, const MatrixSettings&);
void check_matrix_tangents(const char* op, const MatrixPoint&, const MatrixPoint& tangents);
// What a pass takes along: statistics, moments, directions [*L, n1, columns].
void check_matrix_rows(const char* op, const char* name, const MatrixPoint&, const Tensor& rows,
                       const c10::SymInt& columns);

}  // namespace rescaled::ops
