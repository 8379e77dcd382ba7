// SPDX-License-Identifier: BSD-3-Clause
// A step of damped Newton with z = A x and t = A s resident: two reads of A, the line search free.
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <cmath>

#include "regression_solver.h"

namespace torch_rescaled::solvers {
namespace {

constexpr double kLeastDamping = 1e-12, kMostDamping = 1e10;
constexpr double kReach = 2, kLongReach = 16;  // largest |step A s| tried first, and ever
constexpr double kNear = .5;         // |step A s| below which L-BFGS may take over: its first steps have no line search
constexpr double kSampledModel = 3;  // of the history
constexpr double kTwice = 2;         // times or part of the curvature that a sample showed: it was too small
constexpr int kTries = 12, kRefresh = 10;

}  // namespace

double RegressionSolver::model_of_step() const {
  return state_[State::full_mode] != 0 ? 1 : in_part() && !is(SolveMethod::cg) ? kSampledModel : 0;
}

void RegressionSolver::newton_iteration(std::vector<Tensor>& history) {
  settle();
  curve();
  state_[State::iterations] += 1;
  const bool full = state_[State::full_mode] != 0;
  state_[State::relative_gradient] = relative_size(gradient_, noise_);
  if (is_rounding(state_[State::relative_gradient])) {
    record(history, 0, 0, model_of_step());
    return converged(Status::gradient);
  }
  const Direction found =
      is(SolveMethod::cg) ? conjugate_direction() : newton_direction(hessian_, gradient_, state_[State::damping]);
  if (found.deficient) state_[State::deficient] = 1;
  if (full && found.shift > 1e-2) {  // far from definite: Gauss-Newton knows better
    state_[State::full_mode] = 0, fresh_ = is(SolveMethod::cg);
    return;
  }
  if (!found.step.defined() || !found.step.isfinite().all().item<bool>()) {
    record(history, 0, 0, model_of_step());
    return state_[State::relative_gradient] == 0 ? converged(Status::gradient) : stop(Status::stalled);
  }
  Tensor step = found.step.to(state_.x.options());
  const Tensor t = matvec(step);
  const RegressionData::Ahead ahead = data_.ahead(rows_, state_.logits, t, step, form_);
  search(step, t, Models(ahead.model, point_[Numbers::square]), ahead.whole, history);
}

void RegressionSolver::search(const Tensor& step, const Tensor& t, const Models& models, const Point& whole,
                              std::vector<Tensor>& history) {
  const double promised = -models.slope, reach = models.largest, size = 1 + point_[Numbers::largest],
               model = model_of_step(), noise = rounding();
  const bool no_move = reach <= std::max(options_.xtol, 8 * epsilon_) * size;
  const Status last = promises_nothing(promised) ? Status::loss : no_move ? Status::step : Status::running;
  // The exact curvature along the step, in units of the Hessian's that it was made with.
  const double curved = models.gauss_newton / promised;
  const bool poor = model == kSampledModel && !(curved < kTwice && curved > 1 / kTwice);
  if (poor) sample_failed(/*hopeless=*/false);
  const auto accepted = [&](double factor, double found) {
    return found > kArmijo * factor * promised || (promised < 10 * noise && found >= -noise && last == Status::running);
  };
  double factor = reach > kReach ? kReach / reach : 1;
  double found = gain(point_, factor == 1 ? whole : trial(t, factor));
  bool good = accepted(factor, found);
  if (last != Status::running) {  // the last step: taken unless the loss, which it hardly moves, says otherwise
    if (found >= -noise) take(step, t, factor);
    record(history, factor * reach, factor, model);
    return converged(last);
  }
  if (good) {
    while (factor < 1 && 2 * factor * reach <= kLongReach) {
      const double more = gain(point_, trial(t, 2 * factor));
      if (!(more > 1.05 * found)) break;
      factor *= 2, found = more;
    }
  } else {
    for (int i = 0; i < kTries && !good; ++i) {
      factor *= i < 2 ? .5 : .25;
      found = gain(point_, trial(t, factor));
      good = accepted(factor, found);
    }
  }
  if (!good) {
    record(history, 0, 0, model);
    state_[State::damping] = 100 * std::max(state_[State::damping], 1e-8);
    if (state_[State::damping] > kMostDamping) stop(Status::stalled);
    return;
  }
  const double by_gauss_newton = models.predicted(factor, false), by_full = models.predicted(factor, true),
               ratio = found / by_gauss_newton;
  state_[State::damping] = factor < .05 || ratio < .1 ? 10 * std::max(state_[State::damping], 1e-8)
                                                      : std::max(state_[State::damping] / 10, kLeastDamping);
  // Not of a sample: its Hessian stays positive semidefinite.
  state_[State::full_mode] = (!in_part() || is(SolveMethod::cg)) && by_full > 0 && factor * reach < 1 &&
                             std::abs(found - by_full) < .7 * std::abs(found - by_gauss_newton);
  const double before = log_loss(point_), log_scale = point_[Numbers::log_scale];
  take(step, t, factor);
  record(history, factor * reach, factor, model);
  if (flat(before)) return converged(Status::flat);
  if (with_memory() && state_[State::exact] == 1 && factor == 1 && reach < kNear && !poor) {
    state_.memory.begin(hessian_, noise_, log_scale);
    state_[State::exact] = 0;
    evaluate_at_x();
  }
  watch_sum();
}

void RegressionSolver::take(const Tensor& step, const Tensor& t, double factor) {
  state_.x = state_.x + factor * step;
  state_[State::since_refresh] += 1;
  if (state_[State::since_refresh] >= kRefresh) {
    state_.logits = matvec(state_.x);
    state_[State::since_refresh] = 0;
  } else {
    state_.logits = state_.logits + factor * t;
  }
  evaluate();  // at the rounded logits, which the next rows are of
}

}  // namespace torch_rescaled::solvers
