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

/// How a map's solve goes.
struct MapSolveOptions {
  std::optional<at::Tensor> X0 = std::nullopt;  ///< [*, d1, d2]; by default a start from the target
  std::optional<int64_t> rank = std::nullopt;   ///< X = left right^T of this rank
  int64_t sample_dims = 0;                      ///< the last leading dimensions, along which losses are summed
  std::string method = "auto";
  int64_t max_iterations = 100, cg_iterations = 200;
  double gtol = 0;
  std::optional<double> ftol = std::nullopt;
  double xtol = 0, damping = 1e-9;
  std::optional<std::string> group = std::nullopt;  ///< name of a process group that shares out the rows of A1 and B
  std::optional<at::Tensor> state = std::nullopt;   ///< of an earlier call with the same problem
};

/// What a matrix regression takes beside A1, A2 and B.
struct MatrixRegressionOptions {
  std::optional<at::Tensor> attn_mask = std::nullopt;  ///< bool, true where an element takes part
  bool is_causal = false;
  double regularization = 0;  ///< adds 1/2 regularization |A1 X A2^T|^2
  std::string kind = "exp";
  std::string form = "rescaled";
};

struct MapSolution {
  at::Tensor X;            // [*, d1, d2]
  at::Tensor left, right;  // [*, d1, r], [*, d2, r]; r = 0 without a rank
  at::Tensor Y;            // [*, d3, dv], of attention regressions
  at::Tensor summary, history, state;
  double number(MapSolveNumber which) const { return summary.select(-1, static_cast<int64_t>(which)).item<double>(); }
  /// Of a single problem.
  SolveStatus status() const { return static_cast<SolveStatus>(static_cast<int64_t>(number(MapSolveNumber::status))); }
};

}  // namespace torch_rescaled
