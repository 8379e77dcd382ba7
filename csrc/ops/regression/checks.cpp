// SPDX-License-Identifier: BSD-3-Clause
#include "checks.h"

#include "../check.h"

namespace rescaled::ops {
namespace {

struct Named {
  const char* name;
  const Tensor& tensor;
};

// The tensors of a point that have one dimension after the leading ones.
std::array<Named, 6> beside_A(const RegressionPoint& x) {
  return {Named{"b", x.b},
          {"x", x.x},
          {"row_weight", x.row_weight},
          {"penalty_weight", x.penalty_weight},
          {"crow_indices", x.pattern.crow_indices},
          {"col_indices", x.pattern.col_indices}};
}

void check_settings(const char* op, const RegressionSettings& settings) {
  RESCALED_CHECK(VALUE, settings.kind == "exp" || settings.kind == "cosh" || settings.kind == "sinh", op,
                 "kind 'exp', 'cosh' or 'sinh', got '", settings.kind, "'");
  RESCALED_CHECK(VALUE, settings.form == "rescaled" || settings.form == "normalized" || settings.form == "plain", op,
                 "form 'rescaled', 'normalized' or 'plain', got '", settings.form, "'");
}

// The components of a sparse A, but for the indices' values.
void check_pattern(const char* op, const Design& A) {
  const auto& [crow, col, columns] = A.pattern;
  RESCALED_CHECK(VALUE, crow.defined() && col.defined(), op, "crow_indices and col_indices together, got one of them");
  for (const Named& t : {Named{"crow_indices", crow}, {"col_indices", col}}) {
    RESCALED_CHECK(TYPE, t.tensor.scalar_type() == at::kInt || t.tensor.scalar_type() == at::kLong, op, t.name,
                   " of dtype int32 or int64, got ", t.tensor.scalar_type());
    RESCALED_CHECK(VALUE, t.tensor.layout() == at::kStrided, op, "a dense (strided) ", t.name, ", got layout ",
                   t.tensor.layout());
    check_device(op, t.name, t.tensor, "values", A.A);
  }
  RESCALED_CHECK(TYPE, crow.scalar_type() == col.scalar_type(), op, "col_indices of crow_indices' dtype ",
                 crow.scalar_type(), ", got ", col.scalar_type());
  RESCALED_CHECK(VALUE, crow.dim() >= 1 && crow.sym_size(-1) >= 1, op,
                 "crow_indices of shape [*, rows + 1], at least [1], got ", shape(crow));
  RESCALED_CHECK(VALUE, A.A.dim() >= 1, op, "values of shape [*, nnz], got ", shape(A.A));
  RESCALED_CHECK(VALUE, col.dim() >= 1 && col.sym_size(-1) == A.A.sym_size(-1), op, "col_indices of shape [*, ",
                 A.A.sym_size(-1), "] to match values, got ", shape(col));
  RESCALED_CHECK(VALUE, columns >= 0, op, "n_columns >= 0, got ", columns);
}

void check_matrix(const char* op, const Design& design) {
  const Tensor& A = design.A;
  RESCALED_CHECK(NOT_IMPLEMENTED, !A.is_nested(), op, "A to be a dense torch.Tensor, got a nested one");
  check_has_kernels(op, "A", A);
  RESCALED_CHECK(TYPE, floating(A.scalar_type()), op, "A of dtype float32, float64, bfloat16 or float16, got ",
                 A.scalar_type());
  RESCALED_CHECK(VALUE, A.layout() == at::kStrided, op, "a dense (strided) A, got layout ", A.layout());
  if (design.sparse()) return check_pattern(op, design);
  RESCALED_CHECK(VALUE, A.dim() >= 2, op, "A of at least 2 dimensions [*, n, d], got ", shape(A));
}

// A vector of `size` numbers [*, size] in A's arithmetic type.
void check_vector(const char* op, const Tensor& A, const Named& v, const char* what, const c10::SymInt& size) {
  const at::ScalarType type = accumulation_type(A);
  RESCALED_CHECK(NOT_IMPLEMENTED, !v.tensor.is_nested(), op, v.name, " to be a dense torch.Tensor, got a nested one");
  check_device(op, v.name, v.tensor, "A", A);
  RESCALED_CHECK(TYPE, v.tensor.scalar_type() == type, op, v.name, " of dtype ", type, " with A of dtype ",
                 A.scalar_type(), ", got ", v.tensor.scalar_type());
  RESCALED_CHECK(VALUE, v.tensor.layout() == at::kStrided, op, "a dense (strided) ", v.name, ", got layout ",
                 v.tensor.layout());
  RESCALED_CHECK(VALUE, v.tensor.dim() >= 1 && v.tensor.sym_size(-1) == size, op, v.name, " of shape [*, ", size,
                 "] to match A's ", what, ", got ", shape(v.tensor));
}

// A and a vector with equal numbers of leading dimensions.
void check_matrix_and_vector(const char* op, const Design& A, const Named& v, const char* what,
                             const c10::SymInt& size) {
  check_matrix(op, A);
  check_vector(op, A.A, v, what, size);
  const int64_t rank = A.A.dim() - A.suffix();
  RESCALED_CHECK(VALUE, v.tensor.dim() - 1 == rank, op, v.name, " with A's ", rank, " leading dimensions, got ",
                 shape(v.tensor));
  const std::vector<c10::SymInt> full = leading_sizes({A.A, {}, v.tensor, {}, {}, A.pattern});
  check_leading(op, "A", A.A, A.suffix(), full), check_leading(op, v.name, v.tensor, 1, full);
  check_batch_rank(op, full);
}

}  // namespace

std::vector<c10::SymInt> leading_sizes(const RegressionPoint& x) {
  return leading_sizes({{x.A, x.design().suffix()},
                        {x.b, 1},
                        {x.x, 1},
                        {x.row_weight, 1},
                        {x.penalty_weight, 1},
                        {x.pattern.crow_indices, 1},
                        {x.pattern.col_indices, 1}});
}

void check_regression(const char* op, const RegressionPoint& x, const RegressionSettings& settings) {
  check_settings(op, settings);
  const Design A = x.design();
  check_matrix(op, A);
  const c10::SymInt n = A.rows(), d = A.columns();
  check_vector(op, x.A, {"b", x.b}, "rows", n);
  if (x.x.defined()) check_vector(op, x.A, {"x", x.x}, "columns", d);
  for (const Named& w : {Named{"row_weight", x.row_weight}, {"penalty_weight", x.penalty_weight}})
    if (w.tensor.defined()) check_vector(op, x.A, w, "rows", n);
  const std::vector<c10::SymInt> full = leading_sizes(x);
  check_leading(op, A.sparse() ? "values" : "A", x.A, A.suffix(), full);
  for (const Named& v : beside_A(x))
    if (v.tensor.defined()) check_leading(op, v.name, v.tensor, 1, full);
  check_batch_rank(op, full);
}

void check_indices(const char* op, const Design& A) {
  const auto& [crow, col, columns] = A.pattern;
  const int64_t nonzeros = A.A.size(-1);
  const Tensor first = crow.select(-1, 0), last = crow.select(-1, -1), counts = crow.diff();
  RESCALED_CHECK(VALUE, (first == 0).all().item<bool>() && (last == nonzeros).all().item<bool>(), op,
                 "crow_indices from 0 to the number of values, ", nonzeros, ", got ", first.min().item<int64_t>(),
                 " to ", last.max().item<int64_t>());
  RESCALED_CHECK(VALUE, (counts >= 0).all().item<bool>(), op, "crow_indices that never decrease, got a row of ",
                 counts.min().item<int64_t>(), " values");
  if (col.numel() == 0) return;
  const int64_t least = col.min().item<int64_t>(), most = col.max().item<int64_t>();
  RESCALED_CHECK(VALUE, least >= 0 && most < columns.expect_int(), op,
                 "col_indices from 0 to n_columns - 1 = ", columns - 1, ", got ", least, " to ", most);
}

void check_curvature(const char* op, c10::string_view curvature, bool with_none) {
  RESCALED_CHECK(VALUE,
                 curvature == "gauss_newton" || curvature == "clipped" || curvature == "full" ||
                     (with_none && curvature == "none"),
                 op, "curvature ", with_none ? "'none', " : "", "'gauss_newton', 'clipped' or 'full', got '", curvature,
                 "'");
}

void check_direction(const char* op, const RegressionPoint& x, const Tensor& v) {
  check_vector(op, x.A, {"v", v}, "columns", x.design().columns());
  const std::vector<c10::SymInt> full = leading_sizes(x);
  check_leading(op, "v", v, 1, full);
}

void check_regression_point(const char* op, const RegressionPoint& x, const RegressionSettings& settings) {
  check_regression(op, x, settings);
  const int64_t rank = x.A.dim() - x.design().suffix();
  for (const Named& v : beside_A(x))
    RESCALED_CHECK(VALUE, !v.tensor.defined() || v.tensor.dim() - 1 == rank, op, v.name, " with A's ", rank,
                   " leading dimensions, got ", shape(v.tensor));
}

void check_regression_product(const RegressionPoint& x, const Tensor& v, const RegressionSettings& settings,
                              c10::string_view curvature) {
  const char* op = "_regression_product";
  check_regression_point(op, x, settings);
  check_direction(op, x, v);
  RESCALED_CHECK(VALUE, v.dim() == x.x.dim(), op, "v with A's ", x.x.dim() - 1, " leading dimensions, got ", shape(v));
  check_curvature(op, curvature, /*with_none=*/false);
}

void check_regression_matvec(const Design& A, const Tensor& v) {
  check_matrix_and_vector("_regression_matvec", A, {"v", v}, "columns", A.columns());
}

void check_regression_transposed(const Design& A, const Tensor& weights) {
  const char* op = "_regression_transposed";
  check_matrix(op, A);
  check_vector(op, A.A, {"weights", weights}, "rows", A.rows());
  const int64_t rank = A.A.dim() - A.suffix();
  RESCALED_CHECK(VALUE, weights.dim() == rank + 2, op, "weights [*, K, n] with A's ", rank, " leading dimensions, got ",
                 shape(weights));
  const std::vector<c10::SymInt> full =
      leading_sizes({{A.A, A.suffix()}, {weights, 2}, {A.pattern.crow_indices, 1}, {A.pattern.col_indices, 1}});
  check_leading(op, "A", A.A, A.suffix(), full), check_leading(op, "weights", weights, 2, full);
  check_batch_rank(op, full);
}

void check_resident(const Tensor& logits, const RegressionPoint& x, const RegressionSettings& settings) {
  const char* op = "_regression_statistics";
  check_settings(op, settings);
  check_has_kernels(op, "logits", logits);
  RESCALED_CHECK(TYPE, logits.scalar_type() == at::kFloat || logits.scalar_type() == at::kDouble, op,
                 "logits of dtype float32 or float64, got ", logits.scalar_type());
  RESCALED_CHECK(VALUE, logits.dim() >= 1, op, "logits of at least 1 dimension [*, n], got ", shape(logits));
  const std::vector<c10::SymInt> full = leading_sizes({{}, logits, {}, {}, {}});
  for (const Named& v : {Named{"b", x.b}, {"row_weight", x.row_weight}, {"penalty_weight", x.penalty_weight}}) {
    if (!v.tensor.defined()) continue;
    check_vector(op, logits, v, "rows", logits.sym_size(-1));
    RESCALED_CHECK(VALUE, v.tensor.dim() == logits.dim(), op, v.name, " with the logits' ", logits.dim() - 1,
                   " leading dimensions, got ", shape(v.tensor));
    check_leading(op, v.name, v.tensor, 1, full);
  }
  check_batch_rank(op, full);
}

void check_regression_tangents(const char* op, const RegressionPoint& x, const RegressionPoint& t) {
  for (const auto& [name, tangent, primal] :
       {std::tuple<const char*, const Tensor&, const Tensor&>{"tangent_A", t.A, x.A},
        {"tangent_b", t.b, x.b},
        {"tangent_x", t.x, x.x},
        {"tangent_row_weight", t.row_weight, x.row_weight},
        {"tangent_penalty_weight", t.penalty_weight, x.penalty_weight}}) {
    if (!tangent.defined()) continue;
    RESCALED_CHECK(VALUE, primal.defined() && tangent.sym_sizes() == primal.sym_sizes(), op, name, " of shape ",
                   primal.defined() ? shape(primal) : "none", ", got ", shape(tangent));
    RESCALED_CHECK(TYPE, tangent.scalar_type() == primal.scalar_type(), op, name, " of dtype ", primal.scalar_type(),
                   ", got ", tangent.scalar_type());
    check_device(op, name, tangent, "A", x.A);
  }
}

}  // namespace rescaled::ops
