// SPDX-License-Identifier: BSD-3-Clause
#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>
#include <memory>

#include "map_solver.h"

namespace torch_rescaled::solvers {
namespace {

constexpr double kMostDamping = 1e12, kVanishing = 1e-3;
constexpr double kLooseTolerance = .1, kTightTolerance = 1e-6;  // of conjugate gradients
constexpr int kTries = 12, kFlatSteps = 5;

}  // namespace

double inner_product(const Tensor& a, const Tensor& b) { return at::dot(a, b).item<double>(); }

Place& MapSolver::place() {
  if (!place_) place_ = objective().at(state_.unknowns);
  return *place_;
}
std::unique_ptr<Place> MapSolver::evaluate(const Tensor& unknowns) {
  state_[S::evaluations] += 1;
  return objective().at(unknowns);
}

// How much lower the loss is at `to`, in units of the loss's scale here; -inf where it is not a number.
double MapSolver::gain(const Place& to) {
  if (!std::isfinite(to.loss)) return -std::numeric_limits<double>::infinity();
  return place().loss - to.loss * std::exp(std::min(to.log_scale - place().log_scale, 700.));
}

double MapSolver::noise() {
  const Place& p = place();
  return epsilon_ * (12 * std::sqrt(2 * p.loss * p.magnitude / objective().elements()) + 4 * p.loss);
}
bool MapSolver::gains_nothing(double promised) {
  const Place& p = place();
  return promised <= std::max(options_.ftol * p.loss, kMapRounding * epsilon_ * epsilon_ * p.magnitude);
}
void MapSolver::measure(double size) {
  const Place& p = place();
  state_[S::gradient] = size == 0 ? 0 : size / std::sqrt(2 * std::max(p.loss, epsilon_ * epsilon_ * p.magnitude));
}

void MapSolver::run(int64_t chunk, std::vector<Tensor>& history) {
  if (running() && !std::isfinite(place().loss)) finish(Status::non_finite);
  for (; chunk > 0 && running(); --chunk) {
    if (state_[S::iterations] >= static_cast<double>(options_.max_iterations)) finish(Status::max_iterations);
    if (!running()) break;
    if (options_.lbfgs && state_[S::exact] == 0 && memory_iteration(history)) continue;
    iterate(history);
  }
}

void MapSolver::iterate(std::vector<Tensor>& history) {
  state_[S::iterations] += 1;
  Place& here = place();
  const Metric metric(here.blocks(), epsilon_);  // first: the gradient reads what it forms
  const Tensor gradient = here.gradient();
  const double size = std::sqrt(std::max(inner_product(gradient, metric.solve(gradient, 0)), 0.));
  measure(size);
  // The faster gradients fall, the more exactly the next step is computed (Eisenstat and Walker's idea); where whole
  // steps do not halve them, Gauss-Newton's part is not all of the Hessian that matters.
  const double log_size = std::log(size) + here.log_scale / 2;
  const double fall = std::exp(std::min(log_size - state_[S::log_size], 0.));
  state_[S::tolerance] = std::clamp(.5 * fall, kTightTolerance, kLooseTolerance);
  state_[S::log_size] = log_size;
  if (objective().has_hessian() && state_[S::whole] != 0 && fall > .5) state_[S::full] = 1;
  const bool full = state_[S::full] != 0;
  if (!std::isfinite(state_[S::gradient])) {
    record(history, 0, 0, full ? 1 : 0);
    return finish(Status::non_finite);
  }
  if (size == 0 || state_[S::gradient] <= options_.gtol) {
    record(history, 0, 0, full ? 1 : 0);
    return converged(Status::gradient);
  }
  here.curve(full);
  const MapStep found = options_.direct ? direct_step(gradient) : conjugate_gradient(metric, gradient);
  if (full && found.negative) {  // far from a minimum: Gauss-Newton knows better
    state_[S::full] = state_[S::whole] = 0;
    if (!found.step.defined()) {
      record(history, 0, 0, full ? 1 : 0);
      return;
    }
  }
  if (!found.step.defined() || !found.step.isfinite().all().item<bool>()) {
    record(history, 0, 0, full ? 1 : 0);
    return stop(Status::stalled);
  }
  search(found, history);
}

MapStep MapSolver::direct_step(const Tensor& gradient) {
  const Tensor matrix = place().matrix();
  const Direction found = newton_direction(matrix, gradient, state_[S::damping]);
  MapStep out{found.step, {}, found.shift > 1e-2};
  if (out.step.defined()) out.curved = at::matmul(matrix, out.step);
  return out;
}

// (curvature + damping) step = -gradient, in the metric as preconditioner.
MapStep MapSolver::conjugate_gradient(const Metric& metric, const Tensor& gradient) {
  const double damping = state_[S::damping];
  MapStep out;
  Tensor step = at::zeros_like(gradient), curved = at::zeros_like(gradient), residual = -gradient;
  Tensor z = metric.solve(residual, damping), direction = z;
  double size = inner_product(residual, z);
  const double enough = state_[S::tolerance] * state_[S::tolerance] * size;
  for (int64_t i = 0; i < options_.cg_iterations; ++i) {
    const Tensor product = place().product(direction);
    state_[S::products] += 1;
    const Tensor damped = product + damping * metric.weigh(direction);
    const double curvature = inner_product(direction, damped);
    if (!(curvature > 0)) {
      out.negative = true;
      break;
    }
    const double length = size / curvature;
    step += length * direction, curved += length * product, residual -= length * damped;
    out.step = step, out.curved = curved;
    z = metric.solve(residual, damping);
    const double next = inner_product(residual, z);
    if (!(next > enough)) break;
    direction = z + (next / size) * direction;
    size = next;
  }
  return out;
}

void MapSolver::search(const MapStep& s, std::vector<Tensor>& history) {
  const Tensor gradient = place().gradient();
  const bool full = state_[S::full] != 0 && !s.negative;
  const double promised = -inner_product(gradient, s.step), square = inner_product(s.step, s.curved);
  const double reach = objective().change(state_.unknowns, s.step), size = 1 + objective().logits(state_.unknowns),
               rounding = noise();
  const auto predicted = [&](double factor) { return factor * promised - .5 * factor * factor * square; };
  const bool nothing = gains_nothing(promised);
  const bool no_move = reach <= std::max(options_.xtol, 8 * epsilon_) * size;
  const Status last = nothing ? Status::loss : no_move ? Status::step : Status::running;
  const auto accepted = [&](double factor, double found) {
    return found > kMapArmijo * factor * promised ||
           (promised < 10 * rounding && found >= -rounding && last == Status::running);
  };
  const double first = reach > kMapReach ? kMapReach / reach : 1;
  double factor = first;
  std::unique_ptr<Place> next = evaluate(state_.unknowns + factor * s.step);
  double found = gain(*next);
  if (last != Status::running) {  // the last step: taken unless the loss, which it hardly moves, says otherwise
    const bool taken = found >= -rounding;
    if (taken) state_.unknowns = state_.unknowns + factor * s.step, place_ = std::move(next);
    record(history, factor * reach, taken ? factor : 0, full ? 1 : 0);
    return converged(last);
  }
  for (int i = 0; i < kTries && !accepted(factor, found); ++i) {
    factor *= i < 2 ? .5 : .25;
    next = evaluate(state_.unknowns + factor * s.step);
    found = gain(*next);
  }
  if (!accepted(factor, found)) {
    record(history, 0, 0, full ? 1 : 0);
    state_[S::damping] = 100 * std::max(state_[S::damping], 1e-6);
    state_[S::full] = state_[S::whole] = 0;
    if (state_[S::damping] > kMostDamping) stop(Status::stalled);
    return;
  }
  const double ratio = found / predicted(factor), before = log_loss();
  // A step that had to be cut asks for a metric in which it is as short; what a good one gives back is less.
  if (factor < first)
    state_[S::damping] = std::max(state_[S::damping], 1e-8) * std::min(first / factor, 100.);
  else if (ratio < .25)
    state_[S::damping] = 4 * std::max(state_[S::damping], 1e-8);
  else if (ratio > .5)
    state_[S::damping] = std::max(state_[S::damping] / 5, options_.damping);
  const bool off = std::abs(ratio - 1) > .2;
  state_[S::whole] = factor == 1 && reach < 1 ? 1 : 0;
  state_[S::full] = objective().has_hessian() && factor == 1 && (full ? !off || ratio > 0 : off && reach < 1) ? 1 : 0;
  state_.unknowns = state_.unknowns + factor * s.step;
  place_ = std::move(next);
  record(history, factor * reach, factor, full ? 1 : 0);
  if (is_flat(before, 1e-10)) return converged(Status::flat);
  watch_sum();
}

bool MapSolver::is_flat(double before, double less) {
  state_[S::flat] = std::abs(log_loss() - before) < less ? state_[S::flat] + 1 : 0;
  return state_[S::flat] >= kFlatSteps;
}

// In the rescaled form: is the loss escaping to sums of 0?
void MapSolver::watch_sum() {
  if (!problem_.first || first()) return;
  if (place().log_sum >= state_[S::anchor_log_sum] - 1) return;
  state_.unknowns = state_.anchor, place_ = nullptr;
  finish(Status::drift);
}

void MapSolver::converged(Status status) {
  if (!first()) return finish(status);
  // The normalized form's solution: from here the rescaled loss, or back to here.
  state_[S::anchor_log_sum] = place().log_sum;
  state_.anchor = state_.unknowns;
  state_[S::phase] = 1, state_[S::damping] = options_.damping, state_[S::full] = state_[S::whole] = state_[S::flat] = 0;
  state_[S::log_size] = -std::numeric_limits<double>::infinity();
  if (options_.lbfgs) forget(), state_[S::exact] = 0;
  place_ = nullptr;
}
void MapSolver::stop(Status status) {
  const bool near_pole = place().spread > 1 / std::sqrt(epsilon_);
  converged(near_pole ? Status::singular_sum : status);
}
void MapSolver::finish(Status status) {
  if (status != Status::non_finite && problem_.two_sided && objective().logits(state_.unknowns) < kVanishing)
    status = Status::vanishing;
  state_[S::status] = static_cast<double>(status);
}

void MapSolver::record(std::vector<Tensor>& history, double step, double factor, double model) {
  const double row[MapHistory::count] = {
      state_[S::iterations],        log_loss(),         state_[S::gradient], step, factor, state_[S::damping], model,
      first() ? 1. : problem_.form, state_[S::products]};
  history.push_back(at::tensor(at::ArrayRef<double>(row, MapHistory::count)));
}

Tensor MapState::pack(bool with_memory) const {
  std::vector<Tensor> parts = {at::tensor(at::ArrayRef<double>(number.data(), number.size())), unknowns, anchor};
  if (with_memory) parts.insert(parts.end(), {metric_point, pairs.pack()});
  return at::cat(parts);
}
MapState MapState::unpack(const Tensor& packed, int64_t d, bool with_memory) {
  MapState s;
  const Tensor host = wide(packed);
  std::copy_n(host.const_data_ptr<double>(), int64_t{count}, s.number.begin());
  const auto part = [&](int64_t i) { return host.slice(0, count + i * d, count + (i + 1) * d).clone(); };
  s.unknowns = part(0), s.anchor = part(1);
  if (with_memory) s.metric_point = part(2), s.pairs = Pairs::unpack(host.slice(0, count + 3 * d), kPairs, d);
  return s;
}

GaussNewtonResult solve_map(const MapProblem& problem, const GaussNewtonOptions& options, const Tensor& start,
                            const Tensor& packed, int64_t chunk) {
  const auto began = std::chrono::steady_clock::now();
  MapState state;
  if (packed.defined()) {
    state = MapState::unpack(packed, problem.final->size(), options.lbfgs);
    // A caller who goes on has asked for more.
    if (state[MapState::status] == static_cast<double>(Status::max_iterations))
      state[MapState::status] = static_cast<double>(Status::running);
  } else {
    state.unknowns = wide(start), state.anchor = at::zeros_like(state.unknowns);
    state[MapState::phase] = problem.first ? 0 : 1;
    state[MapState::damping] = options.damping;
    state[MapState::log_size] = -std::numeric_limits<double>::infinity();
    state[MapState::since] = -1;
    if (options.lbfgs) {
      state.metric_point = state.anchor;
      state.pairs.begin(MapState::kPairs, state.unknowns.size(0));
    }
  }
  std::vector<Tensor> history;
  MapSolver solver(problem, options, state);
  solver.run(chunk, history);
  const double loss = solver.log_loss();
  state[MapState::seconds] += std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  // In the order of MapSolveNumber.
  const double summary[kMapNumbers] = {state[MapState::status],      loss,
                                       state[MapState::gradient],    state[MapState::iterations],
                                       state[MapState::evaluations], state[MapState::products],
                                       state[MapState::seconds]};
  return {state.unknowns, at::tensor(at::ArrayRef<double>(summary, kMapNumbers)),
          history.empty() ? at::zeros({0, MapHistory::count}, at::kDouble) : at::stack(history),
          state.pack(options.lbfgs)};
}

}  // namespace torch_rescaled::solvers
