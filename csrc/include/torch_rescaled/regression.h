// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace torch_rescaled {

/// What a regression takes beside A, b and x.
struct RegressionOptions {
  /// [*, n]: weights of the rows' squares, 1 by default.
  std::optional<at::Tensor> row_weight = std::nullopt;
  /// [*, n]: adds 1/2 |penalty_weight A x|^2.
  std::optional<at::Tensor> penalty_weight = std::nullopt;
  /// "exp", "cosh" or "sinh".
  std::string kind = "exp";
  /// "rescaled": 1/2 |u - sum(u) b|^2, u of A x; "normalized": 1/2 |u / sum(u) - b|^2; "plain": 1/2 |u - b|^2.
  std::string form = "rescaled";
};

/// How a solve goes.
struct SolveOptions {
  std::optional<at::Tensor> x0 = std::nullopt;  ///< [*, d]; by default a start from b alone
  int64_t max_iterations = 100;
  double gtol = 0;                            ///< of the gradient, relative to what it is computed from
  std::optional<double> ftol = std::nullopt;  ///< of the loss the model promises; 1e-15, in float32 1e-8
  double xtol = 0;                            ///< of the logits' change
  double damping = 1e-12;                     ///< relative to the Hessian's diagonal
  std::string method = "auto";                ///< "newton", "lbfgs", "sampled", "cg", or "auto": by what a Gram costs
  std::optional<std::string> group = std::nullopt;    ///< a process group that shares out the rows
  std::optional<at::Tensor> state = std::nullopt;     ///< of an earlier call with the same problem and method
  std::string sampling = "auto";                      ///< of rows: "leverage", "row_norm", "uniform", or "auto"
  std::optional<int64_t> sample_rows = std::nullopt;  ///< 40 d to 160 d by default
  int64_t seed = 0;                                   ///< of the samples: [0, 2^53)
};

/// Numbers of the summary, in this order.
enum class SolveNumber : int64_t {
  status,
  log_loss,
  gradient,  ///< largest entry over the root of the sum of squares of its terms
  iterations,
  reads,           ///< of A
  grams,           ///< products of d x d
  certificate,     ///< rescaled: below 1/4 there is a minimum near the normalized solution
  deficient,       ///< 1: x is one of many minimizers
  effective_rows,  ///< how many rows the fit rests on
  seconds_reads,
  seconds_grams,
  seconds,
  method,      ///< SolveMethod
  gram_ratio,  ///< what a Gram costs, in reads of A; NaN where "auto" did not measure it
  samples      ///< Hessians of samples of the rows
};
/// How steps are computed.
enum class SolveMethod : int64_t {
  newton,   ///< a Hessian at every iteration: two reads and a Gram
  lbfgs,    ///< one Hessian near the solution, and limited-memory BFGS around it: one read
  sampled,  ///< the same around the Hessian of a sample of the rows
  cg        ///< Hessian products, one read each, by conjugate gradients preconditioned by a sample's Hessian
};
/// Why a solve ended.
enum class SolveStatus : int64_t {
  running,   ///< the caller's chunk of iterations is over
  gradient,  ///< the gradient is within gtol, or rounding, of zero
  loss,      ///< the model promises no more than ftol of the loss
  step,      ///< the step moves no logit by more than xtol
  flat,      ///< the loss has not moved over five steps
  max_iterations,
  non_finite,    ///< no finite loss at the start
  stalled,       ///< no step descends
  drift,         ///< rescaled: the sum of u runs off to 0; x is the normalized form's
  singular_sum,  ///< normalized: the sum of u nearly cancels, and no step descends
  vanishing      ///< cosh, sinh: the logits run off to 0
};

struct RegressionSolution {
  at::Tensor x;        // [*, d]; differentiable once in A, b and the weights
  at::Tensor summary;  // [*, 15] float64: SolveNumber
  at::Tensor history;  // [*, iterations, 9] float64
  at::Tensor state;
  double number(SolveNumber which) const { return summary.select(-1, static_cast<int64_t>(which)).item<double>(); }
  /// Of a single problem.
  SolveStatus status() const { return static_cast<SolveStatus>(static_cast<int64_t>(number(SolveNumber::status))); }
};

/// The loss of u(A x) against b: value and gradient in one read of A.
///
///     Tensor loss = torch_rescaled::regression_loss(A, b, x, {.form = "normalized"});
///
/// A [*, n, d] in float32, float64, bfloat16 or float16; b [*, n] and x [*, d] in float32, float64 for a float64 A.
/// Leading dimensions broadcast. Returns [*], inf where the loss is not representable. Differentiable in every tensor
/// to second order. Throws c10::Error for arguments that do not fit, and where libtorch_rescaled.so is not loaded.
inline at::Tensor regression_loss(const at::Tensor& A, const at::Tensor& b, const at::Tensor& x,
                                  const RegressionOptions& options = {}) {
  using Signature =
      at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&,
                 const std::optional<at::Tensor>&, std::string_view, std::string_view);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("torch_rescaled::regression_loss", "").typed<Signature>();
  return op.call(A, b, x, options.row_weight, options.penalty_weight, options.kind, options.form);
}

/// The x that minimizes regression_loss, or the reason why there is none.
///
///     const auto solution = torch_rescaled::solve_regression(A, b, {.form = "normalized"});
inline RegressionSolution solve_regression(const at::Tensor& A, const at::Tensor& b,
                                           const RegressionOptions& options = {}, const SolveOptions& solve = {}) {
  using Tensors = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor>;
  using MaybeTensor = std::optional<at::Tensor>;
  using Signature =
      Tensors(const at::Tensor&, const at::Tensor&, const MaybeTensor&, const MaybeTensor&, const MaybeTensor&,
              std::string_view, std::string_view, std::string_view, int64_t, double, std::optional<double>, double,
              double, std::optional<std::string_view>, std::optional<int64_t>, const MaybeTensor&, std::string_view,
              std::optional<int64_t>, int64_t);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("torch_rescaled::solve_regression", "").typed<Signature>();
  auto [x, summary, history, state] =
      op.call(A, b, solve.x0, options.row_weight, options.penalty_weight, options.kind, options.form, solve.method,
              solve.max_iterations, solve.gtol, solve.ftol, solve.xtol, solve.damping, solve.group, std::nullopt,
              solve.state, solve.sampling, solve.sample_rows, solve.seed);
  return {x, summary, history, state};
}

}  // namespace torch_rescaled
