// SPDX-License-Identifier: BSD-3-Clause
// Every schema of the library, on one screen.
#include <torch/library.h>

#include <vector>

// Public operators: argument for argument `torch.nn.functional.scaled_dot_product_attention`, plus `kind`.
// clang-format off
//   query [*, H, N, D], key [*, Hk, M, D], value [*, Hk, M, Dv]   any rank >= 2; leading dimensions broadcast;
//                                                                 with enable_gqa Hk divides H
//   attn_mask broadcastable to [*, H, N, M]                       bool (True = attend) or floating (log weight of key)
//   -> output [*, H, N, Dv], balance [*, H, N], log_normalizer [*, H, N]
// clang-format on
#define PUBLIC_ARGUMENTS                                                                   \
  "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, " \
  "bool is_causal=False, *, float? scale=None, bool enable_gqa=False, str kind=\"exp\")"

// Primitives: a family closed under second order; L = leading dimensions.
//   query [*L, N, D], key [*L, M, D], value [*L, M, Dv], bias [*L, N | 1, M | 1] floating, mask [*L, N | 1, M | 1]
//   bool, dropout_seed [*L] int64: one per matrix; matrices that share a seed share the dropout mask.
// All tensors have the same number of leading dimensions; each of a tensor's is the broadcast size or 1. Gradients have
// the shape of the input they belong to (reduced over its 1s), tangents that of their primal. An output that `need`
// does not ask for is an empty [0]. A missing tangent or cotangent is zero and costs nothing.
#define POINT "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? mask, Tensor? dropout_seed"
#define SAVED "Tensor output, Tensor balance, Tensor log_normalizer"
#define SETTINGS "float dropout_p, bool is_causal, float? scale, str kind"
#define TANGENTS "Tensor? tangent_query, Tensor? tangent_key, Tensor? tangent_value, Tensor? tangent_bias"
#define COTANGENTS "Tensor? grad_output, Tensor? grad_balance, Tensor? grad_log_normalizer"

// Regressions: A [*L, n, d], b [*L, n], x [*L, d], row_weight and penalty_weight [*L, n]. In the public operators they
// broadcast; the primitives have equal numbers of leading dimensions, as above. A may be in half precision, the others
// are in the type of the arithmetic. logits, direction: A x and A s, [*L, n].
#define REGRESSION "Tensor A, Tensor b, Tensor x, Tensor? row_weight, Tensor? penalty_weight"
#define REGRESSION_TANGENTS                                                               \
  "Tensor? tangent_A, Tensor? tangent_b, Tensor? tangent_x, Tensor? tangent_row_weight, " \
  "Tensor? tangent_penalty_weight"
#define REGRESSION_GRADIENTS \
  "Tensor grad_A, Tensor grad_b, Tensor grad_x, Tensor grad_row_weight, Tensor grad_penalty_weight"
#define REGRESSION_SETTINGS "str kind, str form"
// Of a sparse A, whose values [*L, nnz] stand in its place: crow_indices [*L, n + 1], col_indices [*L, nnz].
#define PATTERN "Tensor? crow_indices=None, Tensor? col_indices=None"
#define REGRESSION_CSR "Tensor crow_indices, Tensor col_indices, Tensor values, SymInt n_columns, Tensor b, Tensor x"
#define REGRESSION_OPTIONS \
  "*, Tensor? row_weight=None, Tensor? penalty_weight=None, str kind=\"exp\", str form=\"rescaled\""
#define SOLVER_OPTIONS                                                                                 \
  "str method=\"auto\", int max_iterations=100, float gtol=0.0, float? ftol=None, float xtol=0.0, "    \
  "float damping=1e-12, str? group=None, int? chunk=None, Tensor? state=None, str sampling=\"auto\", " \
  "int? sample_rows=None, int seed=0"
// Matrix regressions: query [*L, n1, d], key [*L, n2, d], target [*L, n1, n2], mask [*L, n1 | 1, n2 | 1] bool, float32
// or float64. statistics [*L, n1, 5]: numbers of the rows that the forward saves for every later pass.
// source says where the target comes from, a constant where it is not dense:
//   "dense"                 target
//   "exp", "cosh", "sinh"   a teacher's map of this kind: target_rows its queries [*L, n1, e], target_columns its keys
//                           [*L, n2, e], target_values the statistics of its map [*L, n1, 5]
//   "sparse"                crow_indices [*L, n1 + 1], col_indices [*L, nnz], values [*L, nnz]
//   "zero"                  nothing
#define MATRIX                                                                                            \
  "Tensor query, Tensor key, Tensor? target, Tensor? mask, Tensor? target_rows, Tensor? target_columns, " \
  "Tensor? target_values"
#define MATRIX_TANGENTS "Tensor? tangent_query, Tensor? tangent_key, Tensor? tangent_target"
#define MATRIX_GRADIENTS "Tensor grad_query, Tensor grad_key, Tensor grad_target"
#define MATRIX_SETTINGS "bool is_causal, str kind, str form, str source"
#define MATRIX_OPTIONS                                                                                     \
  "*, Tensor? attn_mask=None, bool is_causal=False, float regularization=0.0, str kind=\"exp\", str form=" \
  "\"rescaled\""
#define MATRIX_OPTIONS_OF_SOLVE \
  "Tensor? attn_mask=None, bool is_causal=False, float regularization=0.0, str kind=\"exp\", "
#define MAP_SOLVE                                                                                                   \
  "int? rank=None, int sample_dims=0, str method=\"auto\", int? max_iterations=None, int cg_iterations=200, float " \
  "gtol=0.0, float? ftol=None, float xtol=0.0, float damping=1e-9, str? group=None, int? chunk=None, Tensor? "      \
  "state=None"
#define MAP_SOLVE_POINT                                                                                            \
  "Tensor? X0, Tensor? mask, Tensor? state, bool is_causal, float regularization, str kind, str form, int? rank, " \
  "int sample_dims, str method, int max_iterations, int cg_iterations, float gtol, float ftol, float xtol, "       \
  "float damping, str? group, int chunk"
#define MATRIX_TARGETS                                                                         \
  ", Tensor? teacher_query=None, Tensor? teacher_key=None, str teacher_kind=\"exp\", Tensor? " \
  "crow_indices=None, Tensor? col_indices=None, Tensor? values=None"
#define TARGET "Tensor b, Tensor? row_weight, Tensor? penalty_weight"

TORCH_LIBRARY(torch_rescaled, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("attention" PUBLIC_ARGUMENTS " -> Tensor", tags);
  m.def("attention_with_normalizer" PUBLIC_ARGUMENTS " -> (Tensor output, Tensor balance, Tensor log_normalizer)",
        tags);
  // target [*, H, N, Dv], log_row_scale [*, H, N] -> a number, or [*, H, N] with reduction "none"
  m.def(
      "attention_loss(Tensor query, Tensor key, Tensor value, Tensor target, *, Tensor? attn_mask=None, "
      "bool is_causal=False, float? scale=None, bool enable_gqa=False, str kind=\"exp\", str form=\"rescaled\", "
      "Tensor? log_row_scale=None, str reduction=\"sum\", bool log=False) -> Tensor",
      tags);

  m.def("_attention_forward(" POINT ", " SETTINGS ") -> (" SAVED ")", tags);
  m.def("_attention_backward(" COTANGENTS ", " POINT ", " SAVED ", " SETTINGS
        ", bool[4] need)"
        " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)",
        tags);
  // The forward and the tangents of its outputs in one pass; on a device without such a kernel one after the other.
  m.def("_attention_forward_jvp(" TANGENTS ", " POINT ", " SETTINGS ") -> (" SAVED
        ", Tensor tangent_output, Tensor tangent_balance, Tensor tangent_log_normalizer)",
        tags);
  m.def("_attention_jvp(" TANGENTS ", " POINT ", " SAVED ", " SETTINGS
        ")"
        " -> (Tensor tangent_output, Tensor tangent_balance, Tensor tangent_log_normalizer)",
        tags);
  m.def("_attention_double_backward(" TANGENTS ", " COTANGENTS ", " POINT ", " SAVED ", " SETTINGS
        ", bool[7] need)"
        " -> (Tensor tangent_output, Tensor tangent_balance, Tensor tangent_log_normalizer,"
        " Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)",
        tags);

  // The kept scores of a problem with this seed: [*L] -> bool [*L, queries, keys].
  m.def("_attention_dropout_mask(Tensor dropout_seed, SymInt queries, SymInt keys, float dropout_p) -> Tensor", tags);

  m.def("regression_loss(Tensor A, Tensor b, Tensor x, " REGRESSION_OPTIONS ") -> Tensor", tags);
  // [*L], [*L, d], [*L, d, d] (or an empty [*L, 0, 0]), [*L]
  m.def("regression_evaluate(Tensor A, Tensor b, Tensor x, " REGRESSION_OPTIONS
        ", str curvature=\"none\") -> (Tensor log_loss, Tensor gradient, Tensor hessian, Tensor log_scale)",
        tags);
  m.def("regression_hvp(Tensor A, Tensor b, Tensor x, Tensor v, " REGRESSION_OPTIONS
        ", str curvature=\"full\") -> Tensor",
        tags);

  // The same of a sparse A [n, n_columns], by rows; int32 or int64 indices, in any order, what occurs twice is added.
  m.def("regression_loss_csr(" REGRESSION_CSR ", " REGRESSION_OPTIONS ") -> Tensor", tags);
  m.def("regression_evaluate_csr(" REGRESSION_CSR ", " REGRESSION_OPTIONS
        ", str curvature=\"none\") -> (Tensor log_loss, Tensor gradient, Tensor hessian, Tensor log_scale)",
        tags);
  m.def("regression_hvp_csr(" REGRESSION_CSR ", Tensor v, " REGRESSION_OPTIONS ", str curvature=\"full\") -> Tensor",
        tags);

  // -(H + damping diag H)^-1 gradient: [*L, d]
  m.def("newton_step(Tensor A, Tensor b, Tensor x, " REGRESSION_OPTIONS
        ", str curvature=\"gauss_newton\", float damping=0.0) -> Tensor",
        tags);
  // x [*L, d], summary [*L, 15] float64, history [*L, iterations, 9] float64, state float64 [*L, a size by the method]
  m.def("solve_regression(Tensor A, Tensor b, Tensor? x0=None, " REGRESSION_OPTIONS ", " SOLVER_OPTIONS
        ") -> (Tensor x, Tensor summary, Tensor history, Tensor state)",
        {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});
  // Gauss-Newton's Hessian at x by a sample of the rows, as the solver computes it: [d, d] float64, in the units of
  // _regression_curvature's
  m.def("_regression_sampled_hessian(" REGRESSION ", " REGRESSION_SETTINGS
        ", str sampling, int sample_rows, int seed, " PATTERN ") -> Tensor",
        tags);
  m.def("newton_step_csr(" REGRESSION_CSR ", " REGRESSION_OPTIONS
        ", str curvature=\"gauss_newton\", float damping=0.0) -> Tensor",
        tags);
  m.def(
      "solve_regression_csr(Tensor crow_indices, Tensor col_indices, Tensor values, SymInt n_columns, Tensor b, "
      "Tensor? x0=None, " REGRESSION_OPTIONS ", " SOLVER_OPTIONS
      ") -> (Tensor x, Tensor summary, Tensor history, Tensor state)",
      {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});
  m.def(
      "_solve_regression(Tensor A, Tensor b, Tensor? row_weight, Tensor? penalty_weight, Tensor? x0, Tensor? "
      "state, " REGRESSION_SETTINGS
      ", str method, int max_iterations, float gtol, float ftol, float xtol, float damping, str? group, int chunk, "
      "str sampling, int sample_rows, int seed, " PATTERN
      ", SymInt n_columns=0)"
      " -> (Tensor x, Tensor summary, Tensor history, Tensor state)",
      {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});

  // -> X [*, d1, d2], Y [*, d3, dv], factors [*, d1, r] and [*, d2, r] (r = 0 without a rank), summary [*, 7],
  // history [*, iterations, 9] and state float64; * without the samples' dimensions
  m.def("solve_matrix_regression(Tensor A1, Tensor A2, Tensor? B=None, *, Tensor? X0=None, " MATRIX_OPTIONS_OF_SOLVE
        "str form=\"rescaled\", " MAP_SOLVE MATRIX_TARGETS
        ") -> (Tensor X, Tensor left, Tensor right, Tensor summary, Tensor history, Tensor state)",
        {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});
  m.def(
      "solve_attention_regression(Tensor A1, Tensor A2, Tensor A3, Tensor B, *, Tensor? "
      "X0=None, " MATRIX_OPTIONS_OF_SOLVE "str form=\"normalized\", " MAP_SOLVE
      ") -> (Tensor X, Tensor Y, Tensor left, Tensor right, Tensor summary, Tensor history, Tensor state)",
      {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});

  m.def(
      "_solve_matrix_regression(Tensor A1, Tensor A2, Tensor? B, Tensor? target_rows, Tensor? target_columns, "
      "Tensor? target_values, " MAP_SOLVE_POINT
      ", str source) -> (Tensor X, Tensor left, Tensor right, Tensor summary, Tensor history, Tensor state)",
      {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});
  m.def("_solve_attention_regression(Tensor A1, Tensor A2, Tensor A3, Tensor B, " MAP_SOLVE_POINT
        ") -> (Tensor X, Tensor Y, Tensor left, Tensor right, Tensor summary, Tensor history, Tensor state)",
        {at::Tag::pt2_compliant_tag, at::Tag::dynamic_output_shape});

  // gradient: in x, saved for the derivatives.
  m.def("_regression_forward(" REGRESSION ", " REGRESSION_SETTINGS ", " PATTERN ") -> (Tensor loss, Tensor gradient)",
        tags);
  m.def("_regression_backward(Tensor? grad_loss, " REGRESSION ", Tensor gradient, " REGRESSION_SETTINGS
        ", bool[5] need, " PATTERN ") -> (" REGRESSION_GRADIENTS ")",
        tags);
  m.def("_regression_jvp(" REGRESSION_TANGENTS ", " REGRESSION ", Tensor gradient, " REGRESSION_SETTINGS ", " PATTERN
        ") -> Tensor",
        tags);
  m.def("_regression_double_backward(" REGRESSION_TANGENTS ", Tensor? grad_loss, " REGRESSION
        ", Tensor gradient, " REGRESSION_SETTINGS ", bool[6] need, " PATTERN
        ") -> (Tensor tangent_loss, " REGRESSION_GRADIENTS ")",
        tags);

  // What has no derivative of its own: numbers of a point [*L, 12] float64, scaled gradient [*L, d] float64; products.
  m.def("_regression_evaluate(" REGRESSION ", " REGRESSION_SETTINGS ", " PATTERN
        ") -> (Tensor statistics, Tensor gradient)",
        tags);
  m.def("_regression_gauss_newton(Tensor A, Tensor b, Tensor x, Tensor? row_weight, " REGRESSION_SETTINGS
        ") -> (Tensor statistics, Tensor gradient, Tensor hessian)",
        tags);
  m.def("_regression_product(" REGRESSION ", Tensor v, " REGRESSION_SETTINGS ", str curvature, " PATTERN ") -> Tensor",
        tags);
  m.def("_regression_matvec(Tensor A, Tensor v, " PATTERN ") -> Tensor", tags);
  // A^T weights: [*L, K, n] -> [*L, K, d], of A's elements squared if `squared`
  m.def("_regression_transposed(Tensor A, Tensor weights, bool squared=False, " PATTERN
        ", SymInt n_columns=0) -> Tensor",
        tags);
  // Refuses what the operators refuse, and computes nothing.
  m.def("_regression_check(Tensor A, Tensor b, Tensor? row_weight, Tensor? penalty_weight, " REGRESSION_SETTINGS
        ", " PATTERN ", SymInt n_columns=0) -> ()",
        tags);
  // steps [*L, K] float64 -> [*L, K, 12] float64, of logits + step direction; without both K = 1
  m.def("_regression_statistics(Tensor logits, Tensor? direction, Tensor? steps, " TARGET ", " REGRESSION_SETTINGS
        ") -> Tensor",
        tags);
  // statistics [*L, 12] -> [*L, 7, n]
  m.def("_regression_rows(Tensor logits, Tensor statistics, " TARGET ", " REGRESSION_SETTINGS ") -> Tensor", tags);
  // rows [*L, 7, n] -> [*L, 7] float64
  m.def("_regression_model(Tensor rows, Tensor direction) -> Tensor", tags);
  m.def("_regression_curvature(Tensor A, Tensor rows, Tensor statistics, str curvature, " PATTERN
        ", SymInt n_columns=0)"
        " -> (Tensor gradient, Tensor hessian, Tensor noise)",
        tags);
  // Of a part of the rows, not finished (../kernels/regression/parts.h), float64: [*L, 11 + 4 d], [*L, K, 11];
  // [*L, 4, d], [*L, d, d]
  m.def("_regression_part(" REGRESSION ", " REGRESSION_SETTINGS ", " PATTERN ") -> Tensor", tags);
  m.def("_regression_part_statistics(Tensor logits, Tensor? direction, Tensor? steps, " TARGET ", " REGRESSION_SETTINGS
        ") -> Tensor",
        tags);
  m.def("_regression_part_gram(Tensor A, Tensor rows, str curvature, " PATTERN
        ", SymInt n_columns=0) -> (Tensor sides, Tensor gram)",
        tags);

  // A1 [*, n1, d1], X [*, d1, d2], A2 [*, n2, d2], attn_mask bool -> [*]; one target: B [*, n1, n2], or teacher_query
  // [*, n1, e] and teacher_key [*, n2, e], or crow_indices [*, n1 + 1], col_indices [*, nnz], values [*, nnz]
  m.def("matrix_regression_loss(Tensor A1, Tensor X, Tensor A2, Tensor? B=None, " MATRIX_OPTIONS MATRIX_TARGETS
        ") -> Tensor",
        tags);
  // [*], [*, d1, d2], [*]
  m.def("matrix_regression_evaluate(Tensor A1, Tensor X, Tensor A2, Tensor? B=None, " MATRIX_OPTIONS MATRIX_TARGETS
        ") -> (Tensor log_loss, Tensor gradient, Tensor log_scale)",
        tags);
  m.def("matrix_regression_hvp(Tensor A1, Tensor X, Tensor A2, Tensor? B, Tensor V, " MATRIX_OPTIONS
        ", str curvature=\"full\"" MATRIX_TARGETS ") -> Tensor",
        tags);

  // loss [*L, n1]: of each row
  m.def("_matrix_regression_forward(" MATRIX ", " MATRIX_SETTINGS ") -> (Tensor loss, Tensor statistics)", tags);
  m.def("_matrix_regression_backward(Tensor? grad_loss, " MATRIX ", Tensor statistics, " MATRIX_SETTINGS
        ", bool[3] need) -> (" MATRIX_GRADIENTS ")",
        tags);
  m.def("_matrix_regression_jvp(" MATRIX_TANGENTS ", " MATRIX ", Tensor statistics, " MATRIX_SETTINGS ") -> Tensor",
        tags);
  m.def("_matrix_regression_double_backward(" MATRIX_TANGENTS ", Tensor? grad_loss, " MATRIX
        ", Tensor statistics, " MATRIX_SETTINGS ", bool[4] need) -> (Tensor tangent_loss, " MATRIX_GRADIENTS ")",
        tags);
  // Without derivatives, scaled as the statistics are: rows [*L, n1, d] of the gradient, of two moments, and of the
  // Hessian (full) or Gauss-Newton product along a direction [*L, n1, d] of the query.
  m.def("_matrix_regression_statistics(" MATRIX ", " MATRIX_SETTINGS ") -> Tensor", tags);
  m.def("_matrix_regression_gradient(" MATRIX ", Tensor statistics, " MATRIX_SETTINGS ") -> Tensor", tags);
  m.def("_matrix_regression_moments(" MATRIX ", Tensor statistics, " MATRIX_SETTINGS
        ", bool full) -> (Tensor moment_p, Tensor moment_q)",
        tags);
  m.def("_matrix_regression_product(" MATRIX
        ", Tensor statistics, Tensor moment_p, Tensor moment_q, Tensor direction, " MATRIX_SETTINGS
        ", bool full) -> Tensor",
        tags);
  // Along tangents: numbers of the rows [*L, n1, 3], the first of the loss as it is; of the gradient's rows [*L, n1,
  // d].
  m.def("_matrix_regression_tangents(" MATRIX_TANGENTS ", " MATRIX ", Tensor statistics, " MATRIX_SETTINGS
        ") -> Tensor",
        tags);
  m.def("_matrix_regression_gradient_tangent(" MATRIX_TANGENTS ", Tensor tangents, " MATRIX
        ", Tensor statistics, " MATRIX_SETTINGS ") -> Tensor",
        tags);
  // Not scaled, with weight [*L, n1] of the rows: the gradient in key [*L, n2, d] and in target [*L, n1, n2], or
  // (tangents given) its tangent.
  m.def("_matrix_regression_columns(" MATRIX_TANGENTS ", Tensor? tangents, Tensor weight, " MATRIX
        ", Tensor statistics, " MATRIX_SETTINGS ") -> Tensor",
        tags);
  m.def("_matrix_regression_elements(" MATRIX_TANGENTS ", Tensor? tangents, Tensor weight, " MATRIX
        ", Tensor statistics, " MATRIX_SETTINGS ") -> Tensor",
        tags);

  m.def("_cuda_path(int device, str family=\"attention\") -> str", tags);
  m.def("build_info(bool devices=False) -> str", tags);
}
