// SPDX-License-Identifier: BSD-3-Clause
#include "checks.h"

#include "../check.h"

namespace rescaled::ops {
namespace {

void check_settings(const char* op, const MatrixSettings& settings) {
  RESCALED_CHECK(VALUE, settings.kind == "exp" || settings.kind == "cosh" || settings.kind == "sinh", op,
                 "kind 'exp', 'cosh' or 'sinh', got '", settings.kind, "'");
  RESCALED_CHECK(VALUE, settings.form == "rescaled" || settings.form == "normalized" || settings.form == "plain", op,
                 "form 'rescaled', 'normalized' or 'plain', got '", settings.form, "'");
}

// A dense matrix of `type`, on `like`'s device.
void check_dense(const char* op, const char* name, const Tensor& t, const char* like_name, const Tensor& like) {
  RESCALED_CHECK(NOT_IMPLEMENTED, !t.is_nested(), op, name, " to be a dense torch.Tensor, got a nested one");
  check_has_kernels(op, name, t);
  check_device(op, name, t, like_name, like);
  RESCALED_CHECK(VALUE, t.layout() == at::kStrided, op, "a dense (strided) ", name, ", got layout ", t.layout());
  RESCALED_CHECK(VALUE, t.dim() >= 2, op, name, " of at least 2 dimensions, got ", shape(t));
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

}  // namespace

void check_matrix_regression(const char* op, const MatrixArguments& x, const MatrixSettings& settings) {
  check_settings(op, settings);
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"A1", x.A1}, {"X", x.X}, {"A2", x.A2}, {"B", x.B}})
    check_dense(op, name, t, "A1", x.A1);
  RESCALED_CHECK(TYPE, floating(x.A1.scalar_type()), op, "A1 of dtype float32, float64, bfloat16 or float16, got ",
                 x.A1.scalar_type());
  const at::ScalarType type = accumulation_type(x.A1);
  check_type(op, "A2", x.A2, x.A1.scalar_type(), "A1", x.A1);
  check_type(op, "X", x.X, type, "A1", x.A1), check_type(op, "B", x.B, type, "A1", x.A1);
  const c10::SymInt n1 = x.A1.sym_size(-2), n2 = x.A2.sym_size(-2);
  check_size(op, "X", x.X, "[*, columns of A1, columns of A2]", x.A1.sym_size(-1), x.A2.sym_size(-1));
  check_size(op, "B", x.B, "[*, rows of A1, rows of A2]", n1, n2);
  if (x.attn_mask.defined()) check_mask(op, "attn_mask", x.attn_mask, x.A1, "A1", n1, n2);
  const std::vector<c10::SymInt> full = leading_sizes({{x.A1, 2}, {x.X, 2}, {x.A2, 2}, {x.B, 2}, {x.attn_mask, 2}});
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"A1", x.A1},
                                {"X", x.X},
                                {"A2", x.A2},
                                {"B", x.B},
                                {"attn_mask", x.attn_mask}})
    if (t.defined()) check_leading(op, name, t, 2, full);
  check_batch_rank(op, full);
}

void check_matrix_direction(const char* op, const MatrixArguments& x, const Tensor& V) {
  check_dense(op, "V", V, "A1", x.A1);
  check_type(op, "V", V, x.X.scalar_type(), "X", x.X);
  check_size(op, "V", V, "X's", x.X.sym_size(-2), x.X.sym_size(-1));
  const std::vector<c10::SymInt> full = leading_sizes({{x.A1, 2}, {x.X, 2}, {x.A2, 2}, {x.B, 2}, {V, 2}});
  check_leading(op, "V", V, 2, full);
}

bool check_matrix_curvature(const char* op, c10::string_view curvature) {
  RESCALED_CHECK(VALUE, curvature == "gauss_newton" || curvature == "full", op,
                 "curvature 'gauss_newton' or 'full', got '", curvature, "'");
  return curvature == "full";
}

void check_matrix_point(const char* op, const MatrixPoint& x, const MatrixSettings& settings) {
  check_settings(op, settings);
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"query", x.query}, {"key", x.key}, {"target", x.target}}) {
    check_dense(op, name, t, "query", x.query);
    check_type(op, name, t, x.query.scalar_type(), "query", x.query);
  }
  RESCALED_CHECK(TYPE, x.query.scalar_type() == at::kFloat || x.query.scalar_type() == at::kDouble, op,
                 "query of dtype float32 or float64, got ", x.query.scalar_type());
  const c10::SymInt n1 = x.query.sym_size(-2), n2 = x.key.sym_size(-2);
  check_size(op, "key", x.key, "[*, n2, columns of query]", n2, x.query.sym_size(-1));
  check_size(op, "target", x.target, "[*, rows of query, rows of key]", n1, n2);
  if (x.mask.defined()) check_mask(op, "mask", x.mask, x.query, "query", n1, n2);
  const std::vector<c10::SymInt> full = leading_sizes(x);
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"query", x.query},
                                {"key", x.key},
                                {"target", x.target},
                                {"mask", x.mask}}) {
    if (!t.defined()) continue;
    RESCALED_CHECK(VALUE, t.dim() == x.query.dim(), op, name, " with query's ", x.query.dim() - 2,
                   " leading dimensions, got ", shape(t));
    check_leading(op, name, t, 2, full);
  }
  check_batch_rank(op, full);
}

void check_matrix_tangents(const char* op, const MatrixPoint& x, const MatrixPoint& t) {
  for (const auto& [name, tangent, primal] :
       {std::tuple<const char*, const Tensor&, const Tensor&>{"tangent_query", t.query, x.query},
        {"tangent_key", t.key, x.key},
        {"tangent_target", t.target, x.target}}) {
    if (!tangent.defined()) continue;
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
  check_leading(op, name, rows, 2, leading_sizes({{x.query, 2}, {x.key, 2}, {x.target, 2}, {x.mask, 2}, {rows, 2}}));
}

}  // namespace rescaled::ops
