// SPDX-License-Identifier: BSD-3-Clause
// A step of L-BFGS around one Hessian, that of the start or of a step of Newton's: one read of A, no Gram. Where a full
// step does not pay, Newton's follow until they are short.
#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "../ops/regression/design.h"
#include "regression_solver.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;

constexpr double kPoor = .1;   // of what the model promised: its Hessian is of another place
constexpr double kSlow = .5;   // decrease of the promise from one step to the next,
constexpr int kSlowSteps = 2;  // that many times: so is this
// Reads of A a Gram costs, above which a sample's Hessian pays: L-BFGS forms one Gram, or two to three where the start
// needs more of them, and a sample's takes three steps more (measured, d 32 to 256: even at 6, and below 3).
constexpr double kDearGram = 7, kDearGrams = 3;
constexpr int64_t kManyRows = 200;  // with so many rows for each column
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

double seconds_of(const std::function<void()>& f) {
  double seconds = 0;
  {
    const Clock clock(seconds);
    f();
  }
  return seconds;
}

}  // namespace

SolveMethod choose_method(const RegressionData& data, bool many_grams, double& gram_ratio) {
  constexpr int64_t kSmall = 1 << 18, kParts = 64, kLeast = 1 << 16;  // least: enough to time
  const Tensor& b = data.problem().b;
  const Design A = data.problem().design();
  const int64_t n = b.size(0), d = data.columns();
  if (is_wide(A)) return SolveMethod::cg;
  if (A.A.numel() < kSmall || !b.device().is_cpu()) return SolveMethod::newton;
  const int64_t rows = std::min(n / 2, std::max(n / kParts, kLeast / (A.A.numel() / n + 1)));
  const Tensor v = at::zeros({d}, b.options()), numbers = at::zeros({Numbers::count}, at::kDouble);
  double read = kInfinity, both = kInfinity;
  for (const int64_t first : {int64_t{0}, n / 2}) {
    const Design part = narrowed_rows(A, first, rows);
    const Tensor zero = at::zeros({rows}, b.options()), one = at::ones_like(zero);
    const Tensor resident = at::stack({zero, one, zero, zero, zero, zero, zero});
    read = std::min(read, seconds_of([&] { regression_matvec(part, v); }));
    both = std::min(both, seconds_of([&] { regression_curvature(part, resident, numbers, "gauss_newton"); }));
  }
  gram_ratio = std::max(both / read - 1, 0.);
  if (gram_ratio > (many_grams ? kDearGrams : kDearGram) && n >= kManyRows * d) return SolveMethod::sampled;
  return gram_ratio > 1 ? SolveMethod::lbfgs : SolveMethod::newton;
}

const Tensor& RegressionSolver::x_here() {
  auto& [of, here] = x_here_;
  if (!of.is_same(state_.x)) of = state_.x, here = of.to(at::kCPU);
  return here;
}

void RegressionSolver::memory_iteration(std::vector<Tensor>& history) {
  constexpr double kModel = 2;
  Memory& memory = state_.memory;
  state_[State::iterations] += 1;
  const double unit = std::exp(point_[Numbers::log_scale] - memory.log_scale);
  const Tensor gradient = state_.gradient * unit;
  state_[State::relative_gradient] = relative_size(gradient, memory.noise);
  if (is_rounding(state_[State::relative_gradient])) {
    record(history, 0, 0, kModel);
    return converged(Status::gradient);
  }
  // What rounding x does to the gradient and to the loss. Newton's steps carry A x on, and see below it.
  const Tensor old_here = x_here(), square = wide(old_here).square(),
               noise_of_x = at::matmul(memory.hessian.square(), square);
  const double loss_of_x = at::dot(memory.hessian.diagonal().abs(), square).item<double>() / unit;
  bool below_rounding = is_rounding(relative_size(gradient, memory.noise + noise_of_x));
  const auto [step, shift, deficient] = memory.direction(gradient, options_.damping);
  if (deficient) state_[State::deficient] = 1;
  const double promised = step.defined() ? -at::dot(step, state_.gradient).item<double>() : kNan;
  const bool last = promises_nothing(promised);
  below_rounding = below_rounding || (!last && promised <= 4 * epsilon_ * epsilon_ * loss_of_x);
  if (below_rounding || !std::isfinite(promised) || promised <= 0) {
    state_[State::exact] = below_rounding ? 2 : 1, state_[State::iterations] -= 1;
    sample_failed(/*hopeless=*/below_rounding);
    return;
  }
  const double noise = rounding();
  const Point before = point_;
  const Tensor old_x = state_.x, old_gradient = state_.gradient;
  // On the CPU, so that no device is waited for to know it.
  const Tensor next = old_here + step.to(old_here.scalar_type());
  state_.x = next.to(old_x.options(), /*non_blocking=*/true), x_here_ = {state_.x, next};
  evaluate_at_x();
  const double found = gain(before, point_);
  const bool good = found > kArmijo * promised || ((last || promised < 10 * noise) && found >= -noise);
  if (!good) state_.x = old_x, point_ = before, state_.gradient = old_gradient;
  record(history, good ? kNan : 0, good, kModel);
  if (last) return converged(Status::loss);
  if (good && flat(log_loss(before))) return converged(Status::flat);
  const double kept = promised * unit;
  state_[State::slow] += state_[State::promised] > 0 && kept > kSlow * state_[State::promised];
  state_[State::promised] = kept;
  if (!good || found < kPoor * promised / 2 || state_[State::slow] >= kSlowSteps) {
    sample_failed(/*hopeless=*/state_[State::slow] >= kSlowSteps);
    state_[State::exact] = 1, state_[State::slow] = state_[State::promised] = 0;
    return watch_sum();
  }
  const double new_unit = std::exp(point_[Numbers::log_scale] - memory.log_scale);
  memory.pairs.add(wide(x_here()) - wide(old_here), state_.gradient * new_unit - gradient);
  watch_sum();
}

}  // namespace torch_rescaled::solvers
