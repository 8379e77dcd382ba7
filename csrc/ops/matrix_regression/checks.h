// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "problem.h"

namespace rescaled::ops {

// Of the public operators, whose tensors broadcast: A1 [*, n1, d1], X [*, d1, d2], A2 [*, n2, d2], and one target: B
// [*, n1, n2]; teacher_query [*, n1, e] and teacher_key [*, n2, e]; or crow_indices [*, n1 + 1], col_indices and values
// [*, nnz].
struct MatrixArguments {
  Tensor A1, X, A2, B, attn_mask, teacher_query, teacher_key, crow_indices, col_indices, values;
};
// With `settings.source` set by which target is there, and for a teacher by its kind.
MatrixSettings check_matrix_regression(const char* op, const MatrixArguments&, MatrixSettings settings,
                                       c10::string_view teacher_kind);
void check_matrix_direction(const char* op, const MatrixArguments&, const Tensor& V);
// True for the Hessian, false for Gauss-Newton.
bool check_matrix_curvature(const char* op, c10::string_view curvature);

// A target that is not dense has no derivative.
void check_constant(const char* op, const char* name, const Tensor&);

// Of the primitives, whose tensors have the same number of leading dimensions.
void check_matrix_point(const char* op, const MatrixPoint&, const MatrixSettings&);
// With the statistics that the forward saved.
void check_matrix_saved(const char* op, const MatrixPoint&, const Tensor& statistics, const MatrixSettings&);
void check_matrix_tangents(const char* op, const MatrixPoint&, const MatrixPoint& tangents);
// What a pass takes along: statistics, moments, directions [*L, n1, columns].
void check_matrix_rows(const char* op, const char* name, const MatrixPoint&, const Tensor& rows,
                       const c10::SymInt& columns);
// [*L, n1]
void check_matrix_weight(const char* op, const MatrixPoint&, const Tensor& weight);

}  // namespace rescaled::ops
