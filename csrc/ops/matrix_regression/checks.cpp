// SPDX-License-Identifier: BSD-3-Clause
#include "checks.h"

#include <ATen/core/grad_mode.h>

#include "../../kernels/matrix_regression/parameters.h"
#include "../check.h"

namespace rescaled::ops {
namespace {

void check_settings(const char* op, const MatrixSettings& settings) {
  RESCALED_CHECK(
      VALUE,
      settings.source == "dense" || settings.source == "sparse" || settings.source == "zero" || has_teacher(settings),
      op, "source 'dense', 'exp', 'cosh', 'sinh', 'sparse' or 'zero', got '", settings.source, "'");
  RESCALED_CHECK(VALUE, settings.kind == "exp" || settings.kind == "cosh" || settings.kind == "sinh", op,
                 "kind 'exp', 'cosh' or 'sinh', got '", settings.kind, "'");
  RESCALED_CHECK(VALUE, settings.form == "rescaled" || settings.form == "normalized" || settings.form == "plain", op,
                 "form 'rescaled', 'normalized' or 'plain', got '", settings.form, "'");
}

// A dense matrix of `type`, on `like`'s device.
void check_dense(const char* op, const char* name, const Tensor& t, const char* like_name, const Tensor& like,
                 int64_t dimensions = 2) {
  RESCALED_CHECK(NOT_IMPLEMENTED, !t.is_nested(), op, name, " to be a dense torch.Tensor, got a nested one");
  check_has_kernels(op, name, t);
  check_device(op, name, t, like_name, like);
  RESCALED_CHECK(VALUE, t.layout() == at::kStrided, op, "a dense (strided) ", name, ", got layout ", t.layout());
  RESCALED_CHECK(VALUE, t.dim() >= dimensions, op, name, " of at least ", dimensions, " dimension",
                 dimensions == 1 ? "" : "s", ", got ", shape(t));
}
void check_size(const char* op, const char* name, const Tensor& t, const char* expected, const c10::SymInt& rows,
                const c10::SymInt& columns) {
  RESCALED_CHECK(VALUE, t.sym_size(-2) == rows && t.sym_size(-1) == columns, op, name, " of shape ", expected,
                 " = [*, ", rows, ", ", columns, "], got ", shape(t));
}
void check_type(const char* op, const char* name, const Tensor& t, at::ScalarType type, const char* like_name,
                const Tensor& like) {
  RESCALED_CHECK(TYPE, t.scalar_type() == type, op, name, " of dtype ", type, " with ", like_name, " of dtype ",
                 like.scalar_type(), ", got ", t.scalar_type());
}

void check_mask(const char* op, const char* name, const Tensor& mask, const Tensor& like, const char* like_name,
                const c10::SymInt& rows, const c10::SymInt& columns) {
  check_dense(op, name, mask, like_name, like);
  RESCALED_CHECK(TYPE, mask.scalar_type() == at::kBool, op, name, " of dtype Bool (true: takes part), got ",
                 mask.scalar_type());
  const bool fits =
      (mask.sym_size(-2) == rows || mask.sym_size(-2) == 1) && (mask.sym_size(-1) == columns || mask.sym_size(-1) == 1);
  RESCALED_CHECK(VALUE, fits, op, name, " broadcastable to [*, ", rows, ", ", columns, "], got ", shape(mask));
}

// A target's part [*, length] or, as a matrix, [*, rows, columns].
void check_index(const char* op, const char* name, const Tensor& t, const char* like_name, const Tensor& like) {
  check_dense(op, name, t, like_name, like, 1);
  RESCALED_CHECK(TYPE, t.scalar_type() == at::kLong, op, name, " of dtype int64, got ", t.scalar_type());
}
void check_components(const char* op, const char* crow_name, const Tensor& crow, const char* columns_name,
                      const Tensor& columns, const char* values_name, const Tensor& values, const char* like_name,
                      const Tensor& like) {
  check_index(op, crow_name, crow, like_name, like), check_index(op, columns_name, columns, like_name, like);
  check_dense(op, values_name, values, like_name, like, 1);
  const c10::SymInt n1 = like.sym_size(-2);
  RESCALED_CHECK(VALUE, crow.sym_size(-1) == n1 + 1, op, crow_name, " of shape [*, rows + 1] = [*, ", n1 + 1, "], got ",
                 shape(crow));
  RESCALED_CHECK(VALUE, columns.sym_size(-1) == values.sym_size(-1), op, columns_name, " of as many elements as ",
                 values_name, ", ", values.sym_size(-1), ", got ", shape(columns));
}

struct Named {
  const char* name;
  const Tensor& t;
  int64_t suffix;
};
std::vector<c10::SymInt> leading_sizes(const MatrixArguments& x, const Tensor& V = {}) {
  return ops::leading_sizes({{x.A1, 2},
                             {x.X, 2},
                             {x.A2, 2},
                             {x.B, 2},
                             {x.attn_mask, 2},
                             {x.teacher_query, 2},
                             {x.teacher_key, 2},
                             {x.crow_indices, 1},
                             {x.col_indices, 1},
                             {x.values, 1},
                             {V, 2}});
}

}  // namespace

void check_constant(const char* op, const char* name, const Tensor& t) {
  if (!t.defined() || !t.is_floating_point()) return;
  const bool differentiable = (at::GradMode::is_enabled() && t.requires_grad()) || t._fw_grad(/*level=*/0).defined();
  RESCALED_CHECK(NOT_IMPLEMENTED, !differentiable, op, name,
                 " to be a constant, since only dense targets have derivatives; got one that is differentiated "
                 "(detach it)");
}

MatrixSettings check_matrix_regression(const char* op, const MatrixArguments& x, MatrixSettings settings,
                                       c10::string_view teacher_kind) {
  check_settings(op, settings);
  const bool teacher = x.teacher_query.defined() || x.teacher_key.defined(),
             sparse = x.crow_indices.defined() || x.col_indices.defined() || x.values.defined();
  const int targets = x.B.defined() + teacher + sparse;
  RESCALED_CHECK(VALUE, targets == 1, op,
                 "one target, B, or teacher_query and teacher_key, or crow_indices, col_indices and values; got ",
                 targets == 0 ? "none" : "more than one");
  RESCALED_CHECK(VALUE, !teacher || (x.teacher_query.defined() && x.teacher_key.defined()), op,
                 "teacher_query and teacher_key together, got one of them");
  RESCALED_CHECK(VALUE, !sparse || (x.crow_indices.defined() && x.col_indices.defined() && x.values.defined()), op,
                 "crow_indices, col_indices and values together, got some of them");
  RESCALED_CHECK(VALUE, teacher_kind == "exp" || teacher_kind == "cosh" || teacher_kind == "sinh", op,
                 "teacher_kind 'exp', 'cosh' or 'sinh', got '", teacher_kind, "'");
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"A1", x.A1},
                                {"X", x.X},
                                {"A2", x.A2},
                                {"B", x.B},
                                {"teacher_query", x.teacher_query},
                                {"teacher_key", x.teacher_key}})
    if (t.defined()) check_dense(op, name, t, "A1", x.A1);
  RESCALED_CHECK(TYPE, floating(x.A1.scalar_type()), op, "A1 of dtype float32, float64, bfloat16 or float16, got ",
                 x.A1.scalar_type());
  const at::ScalarType type = accumulation_type(x.A1);
  check_type(op, "A2", x.A2, x.A1.scalar_type(), "A1", x.A1), check_type(op, "X", x.X, type, "A1", x.A1);
  const c10::SymInt n1 = x.A1.sym_size(-2), n2 = x.A2.sym_size(-2);
  check_size(op, "X", x.X, "[*, columns of A1, columns of A2]", x.A1.sym_size(-1), x.A2.sym_size(-1));
  if (x.B.defined()) {
    check_type(op, "B", x.B, type, "A1", x.A1);
    check_size(op, "B", x.B, "[*, rows of A1, rows of A2]", n1, n2);
    settings.source = "dense";
  } else if (teacher) {
    check_type(op, "teacher_query", x.teacher_query, x.A1.scalar_type(), "A1", x.A1);
    check_type(op, "teacher_key", x.teacher_key, x.A1.scalar_type(), "A1", x.A1);
    const c10::SymInt size = x.teacher_query.sym_size(-1);
    check_size(op, "teacher_query", x.teacher_query, "[*, rows of A1, e]", n1, size);
    check_size(op, "teacher_key", x.teacher_key, "[*, rows of A2, columns of teacher_query]", n2, size);
    check_constant(op, "teacher_query", x.teacher_query), check_constant(op, "teacher_key", x.teacher_key);
    settings.source = std::string(teacher_kind);
  } else {
    check_components(op, "crow_indices", x.crow_indices, "col_indices", x.col_indices, "values", x.values, "A1", x.A1);
    check_type(op, "values", x.values, type, "A1", x.A1), check_constant(op, "values", x.values);
    settings.source = "sparse";
  }
  if (x.attn_mask.defined()) check_mask(op, "attn_mask", x.attn_mask, x.A1, "A1", n1, n2);
  const std::vector<c10::SymInt> full = leading_sizes(x);
  for (const auto& [name, t, suffix] : {Named{"A1", x.A1, 2},
                                        {"X", x.X, 2},
                                        {"A2", x.A2, 2},
                                        {"B", x.B, 2},
                                        {"attn_mask", x.attn_mask, 2},
                                        {"teacher_query", x.teacher_query, 2},
                                        {"teacher_key", x.teacher_key, 2},
                                        {"crow_indices", x.crow_indices, 1},
                                        {"col_indices", x.col_indices, 1},
                                        {"values", x.values, 1}})
    if (t.defined()) check_leading(op, name, t, suffix, full);
  check_batch_rank(op, full);
  return settings;
}

void check_matrix_direction(const char* op, const MatrixArguments& x, const Tensor& V) {
  check_dense(op, "V", V, "A1", x.A1);
  check_type(op, "V", V, x.X.scalar_type(), "X", x.X);
  check_size(op, "V", V, "X's", x.X.sym_size(-2), x.X.sym_size(-1));
  check_leading(op, "V", V, 2, leading_sizes(x, V));
}

bool check_matrix_curvature(const char* op, c10::string_view curvature) {
  RESCALED_CHECK(VALUE, curvature == "gauss_newton" || curvature == "full", op,
                 "curvature 'gauss_newton' or 'full', got '", curvature, "'");
  return curvature == "full";
}

void check_matrix_point(const char* op, const MatrixPoint& x, const MatrixSettings& settings) {
  check_settings(op, settings);
  const bool dense = settings.source == "dense", sparse = settings.source == "sparse", teacher = has_teacher(settings);
  RESCALED_CHECK(VALUE, x.target.defined() == dense, op, dense ? "a target" : "no target", " with source '",
                 settings.source, "', got ", dense ? "none" : "one");
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"target_rows", x.target_rows},
                                {"target_columns", x.target_columns},
                                {"target_values", x.target_values}})
    RESCALED_CHECK(VALUE, t.defined() == (sparse || teacher), op, sparse || teacher ? "" : "no ", name,
                   " with source '", settings.source, "', got ", t.defined() ? "it" : "none");
  const int64_t suffix = sparse ? 1 : 2;
  const auto all = {Named{"query", x.query, 2},
                    {"key", x.key, 2},
                    {"target", x.target, 2},
                    {"target_rows", x.target_rows, suffix},
                    {"target_columns", x.target_columns, suffix},
                    {"target_values", x.target_values, suffix}};
  for (const auto& [name, t, dimensions] : all) {
    if (!t.defined()) continue;
    check_dense(op, name, t, "query", x.query, dimensions);
    if (t.scalar_type() != at::kLong || !sparse) check_type(op, name, t, x.query.scalar_type(), "query", x.query);
  }
  RESCALED_CHECK(TYPE, x.query.scalar_type() == at::kFloat || x.query.scalar_type() == at::kDouble, op,
                 "query of dtype float32 or float64, got ", x.query.scalar_type());
  const c10::SymInt n1 = x.query.sym_size(-2), n2 = x.key.sym_size(-2);
  check_size(op, "key", x.key, "[*, n2, columns of query]", n2, x.query.sym_size(-1));
  if (dense) check_size(op, "target", x.target, "[*, rows of query, rows of key]", n1, n2);
  if (teacher) {
    const c10::SymInt size = x.target_rows.sym_size(-1);
    check_size(op, "target_rows", x.target_rows, "[*, rows of query, e]", n1, size);
    check_size(op, "target_columns", x.target_columns, "[*, rows of key, e]", n2, size);
    check_size(op, "target_values", x.target_values, "[*, rows of query, 5]", n1, MatrixRegressionStatistics::count);
  }
  if (sparse)
    check_components(op, "target_rows", x.target_rows, "target_columns", x.target_columns, "target_values",
                     x.target_values, "query", x.query);
  if (x.mask.defined()) check_mask(op, "mask", x.mask, x.query, "query", n1, n2);
  const int64_t rank = x.query.dim() - 2;
  const auto check_rank = [&](const char* name, const Tensor& t, int64_t dimensions) {
    RESCALED_CHECK(VALUE, !t.defined() || t.dim() == rank + dimensions, op, name, " with query's ", rank,
                   " leading dimensions, got ", shape(t));
  };
  for (const auto& [name, t, dimensions] : all) check_rank(name, t, dimensions);
  check_rank("mask", x.mask, 2);
  const std::vector<c10::SymInt> full = leading_sizes(x);
  for (const auto& [name, t, dimensions] : all)
    if (t.defined()) check_leading(op, name, t, dimensions, full);
  if (x.mask.defined()) check_leading(op, "mask", x.mask, 2, full);
  check_batch_rank(op, full);
}
void check_matrix_saved(const char* op, const MatrixPoint& x, const Tensor& statistics,
                        const MatrixSettings& settings) {
  check_matrix_point(op, x, settings);
  check_matrix_rows(op, "statistics", x, statistics, MatrixRegressionStatistics::count);
}

void check_matrix_tangents(const char* op, const MatrixPoint& x, const MatrixPoint& t) {
  for (const auto& [name, tangent, primal] :
       {std::tuple<const char*, const Tensor&, const Tensor&>{"tangent_query", t.query, x.query},
        {"tangent_key", t.key, x.key},
        {"tangent_target", t.target, x.target}}) {
    if (!tangent.defined()) continue;
    RESCALED_CHECK(VALUE, primal.defined(), op, "no ", name, " without its primal, got one");
    check_device(op, name, tangent, "query", x.query);
    check_type(op, name, tangent, primal.scalar_type(), "query", x.query);
    RESCALED_CHECK(VALUE, tangent.sym_sizes() == primal.sym_sizes(), op, name, " of shape ", shape(primal), ", got ",
                   shape(tangent));
  }
}

void check_matrix_rows(const char* op, const char* name, const MatrixPoint& x, const Tensor& rows,
                       const c10::SymInt& columns) {
  check_dense(op, name, rows, "query", x.query);
  check_type(op, name, rows, x.query.scalar_type(), "query", x.query);
  check_size(op, name, rows, "[*, rows of query, columns]", x.query.sym_size(-2), columns);
  RESCALED_CHECK(VALUE, rows.dim() == x.query.dim(), op, name, " with query's ", x.query.dim() - 2,
                 " leading dimensions, got ", shape(rows));
  std::vector<c10::SymInt> full = leading_sizes(x);  // a direction may have more
  for (size_t i = 0; i < full.size(); ++i)
    if (full[i] == 1) full[i] = rows.sym_size(static_cast<int64_t>(i));
  check_leading(op, name, rows, 2, full);
}
void check_matrix_weight(const char* op, const MatrixPoint& x, const Tensor& weight) {
  check_dense(op, "weight", weight, "query", x.query, 1);
  check_type(op, "weight", weight, x.query.scalar_type(), "query", x.query);
  RESCALED_CHECK(VALUE, weight.dim() == x.query.dim() - 1 && weight.sym_size(-1) == x.query.sym_size(-2), op,
                 "weight of shape [*, rows of query], got ", shape(weight));
  check_leading(op, "weight", weight, 1, leading_sizes(x));
}

}  // namespace rescaled::ops
