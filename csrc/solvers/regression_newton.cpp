// SPDX-License-Identifier: BSD-3-Clause
// A step of damped Newton with z = A x and t = A s resident: two reads of A, the line search free.
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

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

RegressionSolver::Plan RegressionSolver::plan() {
  Plan out;
  if (!hessian_.is_cpu()) {
    if (plan_unseen(out)) return out;
    const RegressionCurvature here = hosted({gradient_, hessian_, noise_});
    gradient_ = here.gradient, hessian_ = here.hessian, noise_ = here.noise, out = {};
  }
  state_[State::relative_gradient] = relative_size(gradient_, noise_);
  if (is_rounding(state_[State::relative_gradient])) return out;
  Direction& found = out.found;
  found = is(SolveMethod::cg) ? conjugate_direction() : newton_direction(hessian_, gradient_, state_[State::damping]);
  if (is_too_far(found) || !found.step.defined() || !found.step.isfinite().all().item<bool>()) return out;
  out.step = found.step.to(state_.x.options(), /*non_blocking=*/true);
  out.t = matvec(out.step);
  out.ahead = data_.ahead(rows_, out.t, out.step, [&](const Tensor& step) { return logits_after(step, out.t); }, form_);
  return out;
}

bool RegressionSolver::plan_unseen(Plan& out) {
  const int64_t d = data_.columns();
  if (d == 0) return false;
  const double damping = state_[State::damping];
  const Attempt attempt = attempted_direction(hessian_, gradient_, damping);
  out.step = attempt.step.to(state_.x.scalar_type());
  out.t = matvec(out.step);
  const Tensor checks = at::cat({relative_sizes(gradient_, noise_).max().unsqueeze(0), attempt.checks});
  out.ahead =
      data_.ahead(rows_, out.t, out.step, [&](const Tensor& step) { return logits_after(step, out.t); }, form_, checks);
  const double* const seen = out.ahead.others.const_data_ptr<double>();
  state_[State::relative_gradient] = seen[0];
  return is_rounding(seen[0]) || attempt_serves(seen + 1, d, damping);
}

// At state_.x + step.
Tensor RegressionSolver::logits_after(const Tensor& step, const Tensor& t) {
  return state_[State::since_refresh] + 1 >= kRefresh ? matvec(state_.x + step) : state_.logits + t;
}

void RegressionSolver::newton_iteration(std::vector<Tensor>& history) {
  settle();
  curve();
  state_[State::iterations] += 1;
  const Plan plan = this->plan();
  if (is_rounding(state_[State::relative_gradient])) {
    record(history, 0, 0, model_of_step());
    return converged(Status::gradient);
  }
  if (plan.found.deficient) state_[State::deficient] = 1;
  if (is_too_far(plan.found)) {
    state_[State::full_mode] = 0, fresh_ = is(SolveMethod::cg);
    return;
  }
  if (!plan.step.defined()) {
    record(history, 0, 0, model_of_step());
    return state_[State::relative_gradient] == 0 ? converged(Status::gradient) : stop(Status::stalled);
  }
  search(plan, Models(plan.ahead.model, point_[Numbers::square]), history);
}

// From definite, with the full Hessian: Gauss-Newton knows better.
bool RegressionSolver::is_too_far(const Direction& found) const {
  return state_[State::full_mode] != 0 && found.shift > 1e-2;
}

void RegressionSolver::search(const Plan& plan, const Models& models, std::vector<Tensor>& history) {
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
  double found = gain(point_, factor == 1 ? plan.ahead.whole : trial(plan.t, factor));
  bool good = accepted(factor, found);
  if (last != Status::running) {  // the last step: taken unless the loss, which it hardly moves, says otherwise
    if (found >= -noise) take(plan, factor);
    record(history, factor * reach, factor, model);
    return converged(last);
  }
  if (good) {
    while (factor < 1 && 2 * factor * reach <= kLongReach) {
      const double more = gain(point_, trial(plan.t, 2 * factor));
      if (!(more > 1.05 * found)) break;
      factor *= 2, found = more;
    }
  } else {
    for (int i = 0; i < kTries && !good; ++i) {
      factor *= i < 2 ? .5 : .25;
      found = gain(point_, trial(plan.t, factor));
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
  take(plan, factor);
  record(history, factor * reach, factor, model);
  if (flat(before)) return converged(Status::flat);
  if (with_memory() && state_[State::exact] == 1 && factor == 1 && reach < kNear && !poor) {
    const RegressionCurvature here = hosted({gradient_, hessian_, noise_});
    state_.memory.begin(here.hessian, here.noise, log_scale);
    state_[State::exact] = 0;
    evaluate_at_x();
  }
  watch_sum();
}

void RegressionSolver::take(const Plan& plan, double factor) {
  const bool refreshes = state_[State::since_refresh] + 1 >= kRefresh;
  state_.x = state_.x + factor * plan.step;
  state_[State::since_refresh] = refreshes ? 0 : state_[State::since_refresh] + 1;
  if (factor == 1) {
    state_.logits = plan.ahead.logits, point_ = plan.ahead.whole;
    moved();
    statistics_ = plan.ahead.statistics;
  } else {
    state_.logits = refreshes ? matvec(state_.x) : state_.logits + factor * plan.t;
    evaluate();  // at the rounded logits, which the next rows are of
  }
}

}  // namespace torch_rescaled::solvers
