// SPDX-License-Identifier: BSD-3-Clause
// The public matrix regression operators: A1 X is the query and A2 the key of the primitives; the penalty is made of
// products of small matrices.
#include <ATen/TensorOperators.h>
#include <ATen/ops/broadcast_tensors.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/log.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "../../kernels/matrix_regression/parameters.h"
#include "../in_float.h"
#include "checks.h"
#include "primitives.h"

namespace rescaled::ops {
namespace {

#define ARGUMENTS const Tensor &A1, const Tensor &X, const Tensor &A2, const MaybeTensor &B
#define OPTIONS \
  const MaybeTensor &attn_mask, bool is_causal, double regularization, c10::string_view kind, c10::string_view form
#define TARGETS                                                                                    \
  const MaybeTensor &teacher_query, const MaybeTensor &teacher_key, c10::string_view teacher_kind, \
      const MaybeTensor &crow_indices, const MaybeTensor &col_indices, const MaybeTensor &values
#define THE_ARGUMENTS                                                                                    \
  MatrixArguments {                                                                                      \
    A1, X, A2, defined_or(B), defined_or(attn_mask), defined_or(teacher_query), defined_or(teacher_key), \
        defined_or(crow_indices), defined_or(col_indices), defined_or(values)                            \
  }
#define THE_SETTINGS \
  MatrixSettings { is_causal, std::string(kind), std::string(form) }

using LossSignature = Tensor(ARGUMENTS, OPTIONS, TARGETS);
using EvaluateSignature = Three(ARGUMENTS, OPTIONS, TARGETS);
using HvpSignature = Tensor(ARGUMENTS, const Tensor& V, OPTIONS, c10::string_view curvature, TARGETS);

Tensor transposed(const Tensor& t) { return t.transpose(-2, -1); }

// The primitives' point, and what the penalty is made of.
struct Problem {
  Tensor left, right;  // A1, A2 in the type of the arithmetic
  MatrixPoint point;
  Problem(const MatrixArguments& x, const MatrixSettings& settings, int64_t rank = 0) {  // at least so many dimensions
    const at::ScalarType type = accumulation_type(x.A1);
    left = x.A1.to(type), right = x.A2.to(type);
    const Tensor query = at::matmul(left, x.X);
    for (const Tensor& t : {query, right, x.B, x.attn_mask, x.teacher_query, x.teacher_key})
      if (t.defined()) rank = std::max(rank, t.dim());
    for (const Tensor& t : {x.crow_indices, x.col_indices, x.values})
      if (t.defined()) rank = std::max(rank, t.dim() + 1);
    point = {with_rank(query, rank), with_rank(right, rank), with_rank(x.B, rank), with_rank(x.attn_mask, rank)};
    if (has_teacher(settings)) {
      point.target_rows = with_rank(x.teacher_query.to(type), rank);
      point.target_columns = with_rank(x.teacher_key.to(type), rank);
      // Once: every pass takes them along.
      point.target_values =
          matrix_statistics({point.target_rows, point.target_columns, {}, point.mask},
                            {settings.is_causal, settings.source, /*form=*/"rescaled", /*source=*/"zero"});
    } else if (settings.source == "sparse") {
      point.target_rows = with_rank(x.crow_indices, rank - 1);
      point.target_columns = with_rank(x.col_indices, rank - 1);
      point.target_values = with_rank(x.values, rank - 1);
    }
  }
  // (A1^T A1) X (A2^T A2): 1/2 |A1 X A2^T|^2 is half its product with X.
  Tensor weighed(const Tensor& X) const {
    return at::matmul(at::matmul(at::matmul(transposed(left), left), X), at::matmul(transposed(right), right));
  }
};
Tensor penalty(const Problem& problem, const Tensor& X) { return (X * problem.weighed(X)).sum({-2, -1}) / 2; }

MatrixSettings checked(const char* op, const MatrixArguments& x, const MatrixSettings& given,
                       c10::string_view teacher_kind, double regularization) {
  const MatrixSettings settings = check_matrix_regression(op, x, given, teacher_kind);
  TORCH_CHECK_VALUE(regularization >= 0 && std::isfinite(regularization), "torch_rescaled::", op,
                    ": expected a regularization of at least 0, got ", regularization);
  return settings;
}

Tensor matrix_regression_loss(ARGUMENTS, OPTIONS, TARGETS) {
  const MatrixSettings settings =
      checked("matrix_regression_loss", THE_ARGUMENTS, THE_SETTINGS, teacher_kind, regularization);
  const Problem problem(THE_ARGUMENTS, settings);
  const Tensor loss = std::get<0>(matrix_forward(problem.point, settings)).sum(-1);
  return regularization == 0 ? loss : loss + regularization * penalty(problem, X);
}

// Rows of one scale for each problem: that of the largest row whose loss, and with it its gradient, is not 0.
struct Scale {
  Tensor log_scale;  // [*, 1, 1]; 0 in the normalized form, at least 0 beside a penalty
  Tensor half;       // [*, n1, 1]: what rows are multiplied by twice
};
Scale scale_of(const Tensor& statistics, const MatrixSettings& settings, bool penalized) {
  using Number = MatrixRegressionStatistics;
  const double none = -std::numeric_limits<double>::infinity();
  const Tensor reference = statistics.select(-1, Number::reference).unsqueeze(-1),
               loss = statistics.select(-1, Number::loss).unsqueeze(-1);
  if (settings.form == "normalized" || reference.sym_size(-2) == 0)
    return {at::zeros_like(reference.sum(-2, /*keepdim=*/true)), at::ones_like(reference)};
  Tensor largest = reference.masked_fill(loss == 0, none).amax(-2, /*keepdim=*/true);
  largest = penalized ? largest.clamp_min(0) : largest.masked_fill(largest == none, 0);
  return {2 * std::log(2.0) * largest, (reference - largest).clamp_max(0).exp2()};
}

Three matrix_regression_evaluate(ARGUMENTS, OPTIONS, TARGETS) {
  const MatrixSettings settings =
      checked("matrix_regression_evaluate", THE_ARGUMENTS, THE_SETTINGS, teacher_kind, regularization);
  const Problem problem(THE_ARGUMENTS, settings);
  const Tensor statistics = matrix_statistics(problem.point, settings);
  const Scale scale = scale_of(statistics, settings, regularization != 0);
  const Tensor losses = statistics.select(-1, MatrixRegressionStatistics::loss).unsqueeze(-1);
  Tensor log_loss = (losses * scale.half.square()).sum(-2, /*keepdim=*/true).log() + scale.log_scale;
  const Tensor rows = matrix_gradient(problem.point, statistics, settings) * scale.half.square();
  Tensor gradient = at::matmul(transposed(problem.left), rows);
  if (regularization != 0) {
    log_loss = at::logaddexp(log_loss, (regularization * penalty(problem, X)).log().unsqueeze(-1).unsqueeze(-1));
    gradient = gradient + regularization * (-scale.log_scale).exp() * problem.weighed(X);
  }
  return {log_loss.squeeze(-1).squeeze(-1), gradient, scale.log_scale.squeeze(-1).squeeze(-1)};
}

Tensor matrix_regression_hvp(ARGUMENTS, const Tensor& V, OPTIONS, c10::string_view curvature, TARGETS) {
  const char* op = "matrix_regression_hvp";
  const MatrixSettings settings = checked(op, THE_ARGUMENTS, THE_SETTINGS, teacher_kind, regularization);
  check_matrix_direction(op, THE_ARGUMENTS, V);
  const bool full = check_matrix_curvature(op, curvature);
  const Problem problem(THE_ARGUMENTS, settings, V.dim());
  MatrixPoint point = problem.point;
  const Tensor statistics = matrix_statistics(point, settings), half = half_scale(statistics, settings);
  Tensor direction = with_rank(at::matmul(problem.left, V), point.query.dim()), rows;
  if (full) {  // one direction: its sums cost a product less than two moments
    const std::vector<Tensor> same = at::broadcast_tensors({point.query, direction});
    point.query = same[0];
    const MatrixPoint along{same[1], {}, {}, {}};
    const Tensor tangents = matrix_tangents(along, point, statistics, settings);
    rows = matrix_gradient_tangent(along, tangents, point, statistics, settings);
  } else {
    rows =
        matrix_product(point, statistics, matrix_moments(point, statistics, settings, full), direction, settings, full);
  }
  const Tensor found = at::matmul(transposed(problem.left), half * rows * half);
  return regularization == 0 ? found : found + regularization * problem.weighed(V);
}

#define CAST_TARGETS cast(teacher_query), cast(teacher_key), teacher_kind, crow_indices, col_indices, cast(values)

template <c10::DispatchKey kKey>
Tensor loss_autocast(ARGUMENTS, OPTIONS, TARGETS) {
  const InFloat<kKey> cast;
  return handle<LossSignature>("torch_rescaled::matrix_regression_loss")
      .call(cast(A1), cast(X), cast(A2), cast(B), attn_mask, is_causal, regularization, kind, form, CAST_TARGETS);
}
template <c10::DispatchKey kKey>
Three evaluate_autocast(ARGUMENTS, OPTIONS, TARGETS) {
  const InFloat<kKey> cast;
  return handle<EvaluateSignature>("torch_rescaled::matrix_regression_evaluate")
      .call(cast(A1), cast(X), cast(A2), cast(B), attn_mask, is_causal, regularization, kind, form, CAST_TARGETS);
}
template <c10::DispatchKey kKey>
Tensor hvp_autocast(ARGUMENTS, const Tensor& V, OPTIONS, c10::string_view curvature, TARGETS) {
  const InFloat<kKey> cast;
  return handle<HvpSignature>("torch_rescaled::matrix_regression_hvp")
      .call(cast(A1), cast(X), cast(A2), cast(B), cast(V), attn_mask, is_causal, regularization, kind, form, curvature,
            CAST_TARGETS);
}

template <c10::DispatchKey kKey>
void register_autocast(torch::Library& m) {
  m.impl("matrix_regression_loss", TORCH_FN(loss_autocast<kKey>));
  m.impl("matrix_regression_evaluate", TORCH_FN(evaluate_autocast<kKey>));
  m.impl("matrix_regression_hvp", TORCH_FN(hvp_autocast<kKey>));
}
void register_public(torch::Library& m) {
  m.impl("matrix_regression_loss", TORCH_FN(matrix_regression_loss));
  m.impl("matrix_regression_evaluate", TORCH_FN(matrix_regression_evaluate));
  m.impl("matrix_regression_hvp", TORCH_FN(matrix_regression_hvp));
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeImplicitAutograd, m) { rescaled::ops::register_public(m); }
// Under vmap the public operators take apart too; the primitives have a batching rule (registered from Python).
TORCH_LIBRARY_IMPL(torch_rescaled, FuncTorchBatched, m) { rescaled::ops::register_public(m); }
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCPU, m) {
  rescaled::ops::register_autocast<c10::DispatchKey::AutocastCPU>(m);
}
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCUDA, m) {
  rescaled::ops::register_autocast<c10::DispatchKey::AutocastCUDA>(m);
}
