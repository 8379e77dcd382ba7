// SPDX-License-Identifier: BSD-3-Clause
// What a sampled Hessian, or none, changes in a Newton step: gradient and sides by a read of A, no Gram of all rows;
// and conjugate gradients on exact products with it as the preconditioner.
#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "regression_solver.h"

namespace torch_rescaled::solvers {
namespace {

constexpr int kMostResamples = 3;          // then the Hessian is that of all rows
constexpr int kMostProducts = 200;         // of conjugate gradients, in a step
constexpr double kFar = .1, kNear = 1e-3;  // of the right-hand side's norm, where conjugate gradients stop

}  // namespace

bool RegressionSolver::pays_to_sample(const RegressionData& data, const Options& options) {
  return data.columns() > 0 && options.sampling.rows_of(data.rows(), data.columns()) <= data.rows() / 2;
}

bool RegressionSolver::is(SolveMethod method) const { return state_[State::method] == static_cast<double>(method); }
bool RegressionSolver::by_diagonal() const { return is(SolveMethod::cg) && data_.columns() > kMostSquare; }

// Gradient and noise, and the Hessian of a sample or, too large for one, its diagonal. False where there is no sample.
bool RegressionSolver::curve_in_part() {
  const bool plain = form_.form == "plain";
  const auto row = [&](int64_t i) { return rows_.select(-2, i); };
  const auto read = [&](const std::vector<Tensor>& vectors, bool squared) {
    const Clock clock(state_[State::seconds_reads]);
    state_[State::reads] += 1;
    return data_.transposed(at::stack(vectors), squared);
  };
  if (by_diagonal()) {
    const Tensor sides = read({row(Rows::gradient), row(Rows::p), row(Rows::q)}, false),
                 squares = read({row(Rows::diagonal), row(Rows::noise)}, true);
    gradient_ = sides[0], noise_ = squares[1];
    hessian_ = squares[0] + (plain ? 0 : 1) * (point_[Numbers::square] * sides[1].square() - 2 * sides[1] * sides[2]);
    return true;
  }
  Tensor gradient;
  Jacobian here;
  {
    const Clock clock(state_[State::seconds_reads]);
    state_[State::reads] += 1;
    here = jacobian(data_, rows_, state_.logits, point_, form_, &gradient);
  }
  const Clock clock(state_[State::seconds_grams]);
  const SampledHessian found = sampler().hessian(here);
  state_[State::sized] = state_.sizes.known;
  if (!found.hessian.defined()) return false;
  state_[State::samples] += 1;
  gradient_ = gradient, hessian_ = found.hessian, noise_ = found.noise;
  return true;
}

RowSampler RegressionSolver::sampler() {
  if (options_.sampling.by == "auto") sampling_.by = state_[State::resampled] > 0 ? "leverage" : "weight";
  return {data_, sampling_, state_.sizes, static_cast<int64_t>(state_[State::points]), state_[State::reads]};
}

void RegressionSolver::sample_failed(bool hopeless) {
  if (state_[State::sampling] == 0) return;
  state_[State::resampled] += 1;
  if (!hopeless && state_[State::resampled] < kMostResamples) return;
  state_[State::sampling] = 0, fresh_ = false;
}

// Preconditioned conjugate gradients on (H + damping diag H) step = -gradient. Negative curvature ends them: at once,
// `shift` says so.
Direction RegressionSolver::conjugate_direction() {
  const bool full = state_[State::full_mode] != 0, by_diagonal = this->by_diagonal();
  Direction out;
  const Tensor diagonal = by_diagonal ? hessian_ : hessian_.diagonal().clone();
  const double most = diagonal.numel() > 0 ? diagonal.max().item<double>() : 0, damping = state_[State::damping];
  if (!(most > 0) || !std::isfinite(most)) return out;
  const Tensor inverse = 1 / diagonal.clamp_min(1e-14 * most);
  std::optional<Factored> factor;
  if (!by_diagonal) factor.emplace(hessian_, std::max(damping, 1e-12));
  if (factor && !*factor) return out;
  const auto precondition = [&](const Tensor& r) { return factor ? factor->solve(r) : inverse * r; };
  Tensor step = at::zeros_like(gradient_), rest = -gradient_, z = precondition(rest), direction = z;
  double size = at::dot(rest, z).item<double>();
  const double promised = state_[State::promised],
               tolerance = promised > 0 ? std::clamp(size / promised, kNear, kFar) : kFar,
               enough = tolerance * tolerance * size;
  state_[State::promised] = size;
  for (int i = 0; i < kMostProducts && size > enough; ++i) {
    Tensor product;
    {
      const Clock clock(state_[State::seconds_reads]);
      state_[State::reads] += 1;
      product = data_.product(state_.x, direction, point_, form_, full ? "full" : "gauss_newton");
    }
    product = product + damping * diagonal * direction;
    const double curved = at::dot(direction, product).item<double>();
    if (!(curved > 0)) {
      if (i == 0) out.shift = 1, step = direction;
      break;
    }
    const double along = size / curved;
    step = step + along * direction, rest = rest - along * product;
    z = precondition(rest);
    const double next = at::dot(rest, z).item<double>();
    direction = z + (next / size) * direction;
    size = next;
  }
  out.step = step;
  return out;
}

}  // namespace torch_rescaled::solvers
