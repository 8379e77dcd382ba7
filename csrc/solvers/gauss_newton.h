// SPDX-License-Identifier: BSD-3-Clause
// Damped Gauss-Newton steps by preconditioned conjugate gradients, and L-BFGS, for the losses of attention maps:
// docs/solver.md.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "../include/torch_rescaled/map_regression.h"
#include "objective.h"
#include "quasi_newton.h"

namespace torch_rescaled::solvers {

struct GaussNewtonOptions {
  bool direct = false;  // the matrix of the normal equations, where the objective has it, instead of its products
  bool lbfgs = false;   // L-BFGS while the loss says enough, then the above
  int64_t max_iterations = 100, cg_iterations = 200;
  double gtol = 0, ftol = 1e-12, xtol = 0, damping = 1e-9;
};

constexpr int64_t kMapNumbers = static_cast<int64_t>(MapSolveNumber::seconds) + 1;
// A line of the history. `model`: 0 Gauss-Newton, 1 the Hessian, 2 L-BFGS; `form`: as in History.
struct MapHistory {
  enum : int64_t { iteration, log_loss, gradient, step, factor, damping, model, form, products, count };
};

struct MapState {
  enum : int64_t {
    status,
    phase,  // 0: a rescaled form's normalized one first; 1: the form asked for
    full,   // 1: the next step is the Hessian's
    whole,  // 1: the last step was taken whole, and short
    damping,
    iterations,
    flat,
    gradient,
    log_size,   // of the last gradient in the metric
    tolerance,  // of conjugate gradients
    anchor_log_sum,
    exact,  // of L-BFGS: 1: all steps that follow are Gauss-Newton's
    since,  // steps since the metric was of the point; negative: there is none
    unit,   // log_scale of the metric and the pairs
    evaluations,
    products,
    seconds,
    count
  };
  std::array<double, count> number{};
  Tensor unknowns, anchor;  // anchor: the normalized form's solution
  Tensor metric_point;      // of L-BFGS; its metric is computed again from it
  static constexpr int64_t kPairs = 30;
  Pairs pairs;
  double& operator[](int64_t i) { return number[static_cast<size_t>(i)]; }
  double operator[](int64_t i) const { return number[static_cast<size_t>(i)]; }
  static int64_t size(int64_t unknowns, bool with_memory) {
    return int64_t{count} + 2 * unknowns + (with_memory ? unknowns + Pairs::size(kPairs, unknowns) : 0);
  }
  Tensor pack(bool with_memory) const;
  static MapState unpack(const Tensor& packed, int64_t unknowns, bool with_memory);
};

// Objectives of one problem: the form asked for and, if that is the rescaled one, the normalized one.
struct MapProblem {
  const Objective* final = nullptr;
  const Objective* first = nullptr;
  double form = 0;         // as in the history
  bool two_sided = false;  // cosh or sinh: logits may vanish
};

struct GaussNewtonResult {
  Tensor unknowns, summary, history, state;
};

// From `start`, or where `state` (undefined: none) left off; at most `chunk` iterations.
GaussNewtonResult solve_map(const MapProblem&, const GaussNewtonOptions&, const Tensor& start, const Tensor& state,
                            int64_t chunk);

}  // namespace torch_rescaled::solvers
