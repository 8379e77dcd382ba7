// SPDX-License-Identifier: BSD-3-Clause
// min over x of a regression's loss (docs/math.md (7)) by damped Newton steps: docs/solver.md.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "../include/torch_rescaled/regression.h"
#include "../ops/regression/problem.h"
#include "../ops/regression/resident.h"
#include "group.h"
#include "sampling.h"

namespace torch_rescaled::solvers {

using at::Tensor;
using rescaled::ops::RegressionCurvature;
using rescaled::ops::RegressionPoint;
using rescaled::ops::RegressionSettings;

using Status = SolveStatus;

struct Options {
  std::string method = "newton";
  int64_t max_iterations = 100;
  double gtol = 0, ftol = 1e-12, xtol = 0, damping = 1e-12;
  Sampling sampling;
};

// Numbers of a solve, float64: SolveNumber.
constexpr int64_t kNumbers = static_cast<int64_t>(SolveNumber::samples) + 1;
// A line of the history. `model`: 0 Gauss-Newton, 1 the full Hessian, 2 L-BFGS, whose `step` is NaN, 3 Gauss-Newton of
// sampled rows.
struct History {
  enum : int64_t { iteration, log_loss, gradient, step, factor, damping, model, form, reads, count };
};

struct Solution {
  Tensor x;        // [d], type of the arithmetic
  Tensor summary;  // [kNumbers]
  Tensor history;  // [iterations of this call, History::count]
  Tensor state;    // everything a later call needs to go on as if it had not stopped
};

// Columns up to which a preconditioner of d x d is formed and factored; and up to which a Hessian of a sparse A is,
// where a caller asks for it.
constexpr int64_t kMostSquare = 2048, kMostColumns = 16384;
// Whether "auto" forms no d x d matrix: of a sparse A with many columns, a row of which has few values.
inline bool is_wide(const rescaled::ops::Design& A) { return A.sparse() && A.columns() > kMostSquare; }

// Length of the state of a problem.
int64_t state_size(const rescaled::ops::Design& A, const std::string& method);

struct Start {
  Tensor x;                   // undefined: none
  RegressionCurvature model;  // Gauss-Newton's where u is unit b, which is near the solution; where the start needed it
  int64_t reads = 0, grams = 0;
};
// A starting point from b alone, of one problem in the normalized or the plain form: docs/solver.md.
// By a sampler, of the rows that it draws; `by_columns`: without d x d matrices.
class RegressionData;
class RowSampler;
Start starting_point(const RegressionData&, const RegressionSettings&, RowSampler* = nullptr, bool by_columns = false);
Start start_without_square(const RegressionData&, const RegressionSettings&);

// The method for "auto": by what a Gram of A costs, measured on a part of its rows, and by how many rows there are to
// sample from. `many_grams`: whether L-BFGS forms more than one. `gram_ratio`: in reads.
SolveMethod choose_method(const RegressionData&, bool many_grams, double& gram_ratio);

// Gauss-Newton's Hessian of a sample of the rows at point.x, float64 on the CPU, in the units of the point; NaN where
// there is no sample.
Tensor sampled_hessian_at(const RegressionPoint& point, const RegressionSettings&, const Sampling&);

// One problem: A [n, d], b [n], x0 in `point.x` (undefined: starting_point). `state`: of an earlier call with the
// same method, or undefined.
// At most `chunk` iterations. `group`: whose processes have the other rows, and are here too.
Solution solve_problem(const RegressionPoint& point, const RegressionSettings&, const Options&, const Tensor& state,
                       int64_t chunk, const Group& group);

}  // namespace torch_rescaled::solvers
