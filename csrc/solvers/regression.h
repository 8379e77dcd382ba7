// SPDX-License-Identifier: BSD-3-Clause
// min over x of a regression's loss (docs/math.md (7)) by damped Newton steps: docs/solver.md.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "../include/torch_rescaled/regression.h"
#include "../ops/regression/problem.h"

namespace torch_rescaled::solvers {

using at::Tensor;
using rescaled::ops::RegressionPoint;
using rescaled::ops::RegressionSettings;

using Status = SolveStatus;

struct Options {
  int64_t max_iterations = 100;
  double gtol = 0, ftol = 1e-12, xtol = 0, damping = 1e-12;
};

// Numbers of a solve, float64: SolveNumber.
constexpr int64_t kNumbers = static_cast<int64_t>(SolveNumber::seconds) + 1;
// A line of the history.
struct History {
  enum : int64_t { iteration, log_loss, gradient, step, factor, damping, full, form, reads, count };
};

struct Solution {
  Tensor x;        // [d], type of the arithmetic
  Tensor summary;  // [kNumbers]
  Tensor history;  // [iterations of this call, History::count]
  Tensor state;    // everything a later call needs to go on as if it had not stopped
};

// Length of the state of a problem.
int64_t state_size(int64_t columns, int64_t rows);

// A starting point from b alone, of one problem: docs/solver.md. `reads` counts passes over A.
Tensor starting_point(const RegressionPoint&, const RegressionSettings&, int64_t& reads);

// One problem: A [n, d], b [n], x0 in `point.x` (undefined: starting_point). `state`: of an earlier call, or undefined.
// At most `chunk` iterations.
Solution solve_problem(const RegressionPoint& point, const RegressionSettings&, const Options&, const Tensor& state,
                       int64_t chunk);

}  // namespace torch_rescaled::solvers
