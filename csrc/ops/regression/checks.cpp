// SPDX-License-Identifier: BSD-3-Clause
#include "checks.h"

#include "../check.h"

namespace rescaled::ops {
namespace {

struct Named {
  const char* name;
  const Tensor& tensor;
};

void check_settings(const char* op, const RegressionSettings& settings) {
  RESCALED_CHECK(VALUE, settings.kind == "exp" || settings.kind == "cosh" || settings.kind == "sinh", op,
                 "kind 'exp', 'cosh' or 'sinh', got '", settings.kind, "'");
  RESCALED_CHECK(VALUE, settings.form == "rescaled" || settings.form == "normalized" || settings.form == "plain", op,
                 "form 'rescaled', 'normalized' or 'plain', got '", settings.form, "'");
}

void check_matrix(const char* op, const Tensor& A) {
  RESCALED_CHECK(NOT_IMPLEMENTED, !A.is_nested(), op, "A to be a dense torch.Tensor, got a nested one");
  check_has_kernels(op, "A", A);
  RESCALED_CHECK(TYPE, floating(A.scalar_type()), op, "A of dtype float32, float64, bfloat16 or float16, got ",
                 A.scalar_type());
  RESCALED_CHECK(VALUE, A.layout() == at::kStrided, op, "a dense (strided) A, got layout ", A.layout());
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

}  // namespace

std::vector<c10::SymInt> leading_sizes(const RegressionPoint& x) {
  return leading_sizes({{x.A, 2}, {x.b, 1}, {x.x, 1}, {x.row_weight, 1}, {x.penalty_weight, 1}});
}

void check_regression(const char* op, const RegressionPoint& x, const RegressionSettings& settings) {
  check_settings(op, settings);
  check_matrix(op, x.A);
  const c10::SymInt n = x.A.sym_size(-2), d = x.A.sym_size(-1);
  check_vector(op, x.A, {"b", x.b}, "rows", n);
  if (x.x.defined()) check_vector(op, x.A, {"x", x.x}, "columns", d);
  for (const Named& w : {Named{"row_weight", x.row_weight}, {"penalty_weight", x.penalty_weight}})
    if (w.tensor.defined()) check_vector(op, x.A, w, "rows", n);
  const std::vector<c10::SymInt> full = leading_sizes(x);
  check_leading(op, "A", x.A, 2, full);
  for (const Named& v :
       {Named{"b", x.b}, {"x", x.x}, {"row_weight", x.row_weight}, {"penalty_weight", x.penalty_weight}})
    if (v.tensor.defined()) check_leading(op, v.name, v.tensor, 1, full);
  check_batch_rank(op, full);
}

void check_curvature(const char* op, c10::string_view curvature, bool with_none) {
  RESCALED_CHECK(VALUE,
                 curvature == "gauss_newton" || curvature == "clipped" || curvature == "full" ||
                     (with_none && curvature == "none"),
                 op, "curvature ", with_none ? "'none', " : "", "'gauss_newton', 'clipped' or 'full', got '", curvature,
                 "'");
}

void check_direction(const char* op, const RegressionPoint& x, const Tensor& v) {
  check_vector(op, x.A, {"v", v}, "columns", x.A.sym_size(-1));
  const std::vector<c10::SymInt> full = leading_sizes(x);
  check_leading(op, "v", v, 1, full);
}

void check_regression_point(const char* op, const RegressionPoint& x, const RegressionSettings& settings) {
  check_regression(op, x, settings);
  const int64_t rank = x.A.dim() - 2;
  for (const Named& v :
       {Named{"b", x.b}, {"x", x.x}, {"row_weight", x.row_weight}, {"penalty_weight", x.penalty_weight}})
    RESCALED_CHECK(VALUE, !v.tensor.defined() || v.tensor.dim() - 1 == rank, op, v.name, " with A's ", rank,
                   " leading dimensions, got ", shape(v.tensor));
}

void check_regression_product(const RegressionPoint& x, const Tensor& v, const RegressionSettings& settings,
                              c10::string_view curvature) {
  const char* op = "_regression_product";
  check_regression_point(op, x, settings);
  check_direction(op, x, v);
  RESCALED_CHECK(VALUE, v.dim() == x.x.dim(), op, "v with A's ", x.A.dim() - 2, " leading dimensions, got ", shape(v));
  check_curvature(op, curvature, /*with_none=*/false);
}

void check_regression_matvec(const Tensor& A, const Tensor& v) {
  const char* op = "_regression_matvec";
  check_matrix(op, A);
  check_vector(op, A, {"v", v}, "columns", A.sym_size(-1));
  RESCALED_CHECK(VALUE, v.dim() == A.dim() - 1, op, "v with A's ", A.dim() - 2, " leading dimensions, got ", shape(v));
  const std::vector<c10::SymInt> full = leading_sizes({A, {}, v, {}, {}});
  check_leading(op, "A", A, 2, full), check_leading(op, "v", v, 1, full);
  check_batch_rank(op, full);
}

void check_regression_transposed(const Tensor& A, const Tensor& weights) {
  const char* op = "_regression_transposed";
  check_matrix(op, A);
  check_vector(op, A, {"weights", weights}, "rows", A.sym_size(-2));
  RESCALED_CHECK(VALUE, weights.dim() == A.dim(), op, "weights [*, K, n] with A's ", A.dim() - 2,
                 " leading dimensions, got ", shape(weights));
  const std::vector<c10::SymInt> full = leading_sizes({{A, 2}, {weights, 2}});
  check_leading(op, "A", A, 2, full), check_leading(op, "weights", weights, 2, full);
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
