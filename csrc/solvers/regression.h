// SPDX-License-Identifier: BSD-3-Clause
// min over x of a regression's loss (docs/math.md (7)) by damped Newton steps: docs/solver.md.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "../ops/regression/problem.h"

namespace torch_rescaled::solvers {

using at::Tensor;
using rescaled::ops::RegressionPoint;
using rescaled::ops::RegressionSettings;

// Why a solve ended; the texts are in torch_rescaled/solve.py.
enum class Status : int64_t {
  running,   // the caller's chunk of iterations is over
  gradient,  // |g_k| within gtol or rounding of zero for every k
  loss,      // the model promises no more than ftol of the loss
  step,      // the step moves no logit by more than xtol
  flat,      // the loss has not moved over five steps
  max_iterations,
  non_finite,    // no finite loss at the start
  stalled,       // no step descends
  drift,         // rescaled: the sum of u runs off to 0; x is the normalized form's
  singular_sum,  // normalized: the sum of u nearly cancels, and no step descends
  vanishing      // cosh, sinh: the logits run off to 0
};

struct Options {
  std::string method = "newton";
  int64_t max_iterations = 100;
  double gtol = 0, ftol = 1e-12, xtol = 0, damping = 1e-12;
};

// Numbers of a solve, float64, in this order.
struct Summary {
  enum : int64_t {
    status,
    log_loss,
    gradient,
    iterations,
    reads,
    grams,
    certificate,
    deficient,
    effective_rows,
    seconds_reads,
    seconds_grams,
    seconds,
    count
  };
};
// A line of the history.
struct History {
  enum : int64_t { iteration, log_loss, gradient, step, factor, damping, full, form, reads, count };
};

struct Solution {
  Tensor x;        // [d], type of the arithmetic
  Tensor summary;  // [Summary::count]
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
