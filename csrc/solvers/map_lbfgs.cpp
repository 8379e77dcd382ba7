// SPDX-License-Identifier: BSD-3-Clause
// A step of L-BFGS around the metric of a point a few steps back: loss and gradient, no products.
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>

#include "map_solver.h"

namespace torch_rescaled::solvers {
namespace {

constexpr int64_t kRefresh = 20;  // steps after which the metric is of here again: 10 took as long, never up to twice
constexpr int kTries = 8;
// Of a step without pairs, which rests on the metric alone: one of 2.4 has ended where softmax no longer moves.
constexpr double kFirstReach = 1, kFirstShare = .1;
constexpr double kShortest = .1, kLongest = .5;  // of a step that did not gain, the next

}  // namespace

// Gradients, changes of them and the metric are in units of e^unit.
void MapSolver::settle_metric() {
  if (state_[S::since] < 0 || state_[S::since] >= kRefresh) {
    Place& here = place();
    const double by = std::exp(std::min(state_[S::unit] - here.log_scale, 700.));
    if (state_.pairs.count > 0 && by != 1) state_.pairs.changes.mul_(by), state_.pairs.scale.mul_(by);
    state_.metric_point = state_.unknowns, state_[S::unit] = here.log_scale, state_[S::since] = 0;
    metric_.emplace(here.rough_blocks(), epsilon_);
  } else if (!metric_) {
    metric_.emplace(objective().at(state_.metric_point)->rough_blocks(), epsilon_);
  }
}

// The newest pair says how much the metric is off.
Tensor MapSolver::memory_step(const Tensor& gradient) const {
  const Pairs& pairs = state_.pairs;
  double by = 1;
  if (pairs.count > 0) {
    const int64_t newest = (pairs.count - 1) % S::kPairs;
    const Tensor change = pairs.changes[newest];
    by = pairs.scale[newest].item<double>() / inner_product(change, metric_->solve(change, 0));
  }
  return pairs.direction(gradient, [&](const Tensor& q) { return metric_->solve(q, 0).mul_(-by); });
}

void MapSolver::forget() {
  state_.pairs.begin(S::kPairs, state_.unknowns.size(0));
  state_[S::since] = -1, state_[S::flat] = 0;
  metric_.reset();
}

void MapSolver::leave_memory() {
  forget();
  place_ = nullptr;  // whose gradient is not formed as Gauss-Newton's: the steps would depend on where a caller stopped
  state_[S::exact] = 1;
}

bool MapSolver::memory_iteration(std::vector<Tensor>& history) {
  state_[S::iterations] += 1;
  const auto left_to_newton = [&] {
    state_[S::iterations] -= 1;
    leave_memory();
    return false;
  };
  Place& here = place();
  Tensor gradient;
  double unit = 1, size = 0;
  for (int i = 0; i < 2; ++i) {
    settle_metric();
    unit = std::exp(here.log_scale - state_[S::unit]), gradient = here.gradient() * unit;
    size = std::sqrt(std::max(inner_product(gradient, metric_->solve(gradient, 0)), 0.) / unit);
    measure(size);
    if (state_[S::gradient] > options_.gtol || state_[S::since] == 0) break;
    state_[S::since] = -1;  // the metric is not of here
  }
  if (!std::isfinite(state_[S::gradient])) {
    record(history, 0, 0, kModelOfMemory);
    finish(Status::non_finite);
    return true;
  }
  if (size == 0 || state_[S::gradient] <= options_.gtol) {
    record(history, 0, 0, kModelOfMemory);
    converged(Status::gradient);
    return true;
  }
  const Tensor step = memory_step(gradient);
  const double slope = inner_product(gradient, step) / unit, promised = -slope;
  if (!(promised > 0) || !std::isfinite(promised)) return left_to_newton();
  const double reach = objective().change(state_.unknowns, step), rounding = noise();
  const bool nothing = gains_nothing(promised),
             no_move = reach <= std::max(options_.xtol, 8 * epsilon_) * (1 + objective().logits(state_.unknowns));
  const bool last = nothing || no_move;
  if (!last && promised < 10 * rounding) return left_to_newton();  // losses say nothing any more, products do
  const bool alone = state_.pairs.count == 0;
  const double most = alone ? kFirstReach : kMapReach, share = alone ? kFirstShare : kMapArmijo;
  double factor = reach > most ? most / reach : 1;
  std::unique_ptr<Place> next = evaluate(state_.unknowns + factor * step);
  double found = gain(*next);
  if (last) {  // taken unless the loss, which it hardly moves, says otherwise
    const bool taken = found >= -rounding;
    if (taken) state_.unknowns = state_.unknowns + factor * step, place_ = std::move(next);
    record(history, factor * reach, taken ? factor : 0, kModelOfMemory);
    converged(nothing ? Status::loss : Status::step);
    return true;
  }
  // By the parabola through the loss and slope here and the loss there.
  for (int i = 0; i < kTries && !(found > share * factor * promised); ++i) {
    const double least = .5 * factor * promised / (promised - found / factor);
    factor = std::clamp(std::isfinite(least) ? least : 0, kShortest * factor, kLongest * factor);
    next = evaluate(state_.unknowns + factor * step);
    found = gain(*next);
  }
  if (!(found > share * factor * promised)) {
    if (alone) return left_to_newton();
    record(history, 0, 0, kModelOfMemory);
    forget();
    return true;
  }
  const double before = log_loss();
  const Tensor old = state_.unknowns;
  state_.unknowns = old + factor * step;
  place_ = std::move(next);
  record(history, factor * reach, factor, kModelOfMemory);
  const double new_unit = std::exp(std::min(place().log_scale - state_[S::unit], 700.));
  state_.pairs.add(state_.unknowns - old, place().gradient() * new_unit - gradient);
  state_[S::since] += 1;
  if (is_flat(before, std::max(options_.ftol, epsilon_))) leave_memory();  // it promises more than it keeps
  watch_sum();
  return true;
}

}  // namespace torch_rescaled::solvers
