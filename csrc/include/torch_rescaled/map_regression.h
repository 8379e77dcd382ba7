// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

#include "regression.h"

namespace torch_rescaled {

/// Numbers of the summary of a map's solve, in this order; `status` is a SolveStatus.
enum class MapSolveNumber : int64_t {
  status,
  log_loss,
  gradient,  ///< in the metric of the preconditioner, over the root of twice the loss
  iterations,
  evaluations,  ///< of the loss
  products,     ///< of the Hessian or of Gauss-Newton's matrix
  seconds
};

/// What the two map regressions take beside their matrices, and how they are solved.
struct MapOptions {
  std::optional<at::Tensor> X0 = std::nullopt;         ///< [*, d1, d2]; by default a start from the target
  std::optional<at::Tensor> attn_mask = std::nullopt;  ///< bool, true where an element takes part
  bool is_causal = false;
  double regularization = 0;                   ///< adds 1/2 regularization |A1 X A2^T|^2
  std::string kind = "exp";                    ///< "exp", "cosh", "sinh"; "signed" of an attention regression
  std::string form = "normalized";             ///< or "rescaled"; "plain" of a matrix regression
  std::optional<int64_t> rank = std::nullopt;  ///< X = left right^T of this rank
  int64_t sample_dims = 0;                     ///< the last leading dimensions, along which losses are summed
  std::string method = "auto";  ///< "newton", "cg" or "lbfgs"; "projection", "joint", "lbfgs" or "lbfgs_joint"
  std::optional<int64_t> max_iterations = std::nullopt;  ///< 100, of L-BFGS 1000
  int64_t cg_iterations = 200;                           ///< of each iteration, at most
  double gtol = 0;
  std::optional<double> ftol = std::nullopt;  ///< 1e-12, in float32 1e-8
  double xtol = 0;
  double damping = 1e-9;
  std::optional<at::Tensor> teacher_query = std::nullopt, teacher_key = std::nullopt;  ///< in the place of B
  std::string teacher_kind = "exp";
  std::optional<std::string> group = std::nullopt;  ///< a process group that shares out the rows of A1 and B
  std::optional<at::Tensor> state = std::nullopt;   ///< of an earlier call with the same problem
};

struct MapSolution {
  at::Tensor X;            // [*, d1, d2]; differentiable once in the problem's matrices
  at::Tensor Y;            // [*, d3, dv], of attention regressions
  at::Tensor left, right;  // [*, d1, r], [*, d2, r]; r = 0 without a rank
  at::Tensor summary;      // [*, 7] float64: MapSolveNumber
  at::Tensor history;      // [*, iterations, 9] float64
  at::Tensor state;
  double number(MapSolveNumber which) const { return summary.select(-1, static_cast<int64_t>(which)).item<double>(); }
  /// Of a single problem.
  SolveStatus status() const { return static_cast<SolveStatus>(static_cast<int64_t>(number(MapSolveNumber::status))); }
};

/// The X that minimizes 1/2 |D^-1 u(A1 X A2^T) - B|^2 (normalized), or |u - D B|^2 (rescaled), |u - B|^2 (plain).
///
///     const auto solution = torch_rescaled::solve_matrix_regression(A1, A2, B, {.rank = 4});
///
/// A1 [*, n1, d1], A2 [*, n2, d2], B [*, n1, n2], or nothing and a teacher in the options; leading dimensions are
/// problems, or samples of one.
inline MapSolution solve_matrix_regression(const at::Tensor& A1, const at::Tensor& A2,
                                           const std::optional<at::Tensor>& B, const MapOptions& o = {}) {
  using Maybe = std::optional<at::Tensor>;
  using Out = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  using Signature = Out(const at::Tensor&, const at::Tensor&, const Maybe&, const Maybe&, const Maybe&, bool, double,
                        std::string_view, std::string_view, std::optional<int64_t>, int64_t, std::string_view,
                        std::optional<int64_t>, int64_t, double, std::optional<double>, double, double,
                        std::optional<std::string_view>, std::optional<int64_t>, const Maybe&, const Maybe&,
                        const Maybe&, std::string_view, const Maybe&, const Maybe&, const Maybe&);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("torch_rescaled::solve_matrix_regression", "").typed<Signature>();
  auto [X, left, right, summary, history, state] =
      op.call(A1, A2, B, o.X0, o.attn_mask, o.is_causal, o.regularization, o.kind, o.form, o.rank, o.sample_dims,
              o.method, o.max_iterations, o.cg_iterations, o.gtol, o.ftol, o.xtol, o.damping, o.group, std::nullopt,
              o.state, o.teacher_query, o.teacher_key, o.teacher_kind, std::nullopt, std::nullopt, std::nullopt);
  return {X, {}, left, right, summary, history, state};
}

/// The X and Y that minimize 1/2 |D^-1 u(A1 X A2^T) A3 Y - B|^2 (normalized), or |u A3 Y - D B|^2 (rescaled).
///
///     const auto solution = torch_rescaled::solve_attention_regression(A1, A2, A3, B, {.kind = "cosh"});
///
/// A3 [*, n2, d3], B [*, n1, dv].
inline MapSolution solve_attention_regression(const at::Tensor& A1, const at::Tensor& A2, const at::Tensor& A3,
                                              const at::Tensor& B, const MapOptions& o = {}) {
  using Maybe = std::optional<at::Tensor>;
  using Out = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  using Signature = Out(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&, const Maybe&,
                        const Maybe&, bool, double, std::string_view, std::string_view, std::optional<int64_t>, int64_t,
                        std::string_view, std::optional<int64_t>, int64_t, double, std::optional<double>, double,
                        double, std::optional<std::string_view>, std::optional<int64_t>, const Maybe&);
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_rescaled::solve_attention_regression", "")
                             .typed<Signature>();
  auto [X, Y, left, right, summary, history, state] = op.call(
      A1, A2, A3, B, o.X0, o.attn_mask, o.is_causal, o.regularization, o.kind, o.form, o.rank, o.sample_dims, o.method,
      o.max_iterations, o.cg_iterations, o.gtol, o.ftol, o.xtol, o.damping, o.group, std::nullopt, o.state);
  return {X, Y, left, right, summary, history, state};
}

}  // namespace torch_rescaled
