// SPDX-License-Identifier: BSD-3-Clause
// What the steps of a regression's solver share: knowing a point, and when to stop. docs/solver.md.
#include "regression_solver.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <cmath>
#include <limits>

namespace torch_rescaled::solvers {
namespace {

constexpr double kVanishing = 1e-3;  // largest logit below which sinh is linear, and cosh constant
constexpr int kFlatSteps = 5;

}  // namespace

RegressionSolver::RegressionSolver(const RegressionData& data, const RegressionSettings& settings,
                                   const Options& options, State& state)
    : data_(data),
      settings_(settings),
      options_(options),
      state_(state),
      epsilon_(data.problem().b.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                             : std::numeric_limits<float>::epsilon()),
      point_(state.point) {
  sampling_ = options.sampling, sampling_.seed = static_cast<int64_t>(state[State::seed]);
  set_form();
}

void RegressionSolver::run(int64_t chunk, std::vector<Tensor>& history) {
  if (running() && !std::isfinite(point_[Numbers::loss])) finish(Status::non_finite);
  for (; chunk > 0 && running(); --chunk) {
    if (state_[State::iterations] >= static_cast<double>(options_.max_iterations)) finish(Status::max_iterations);
    if (!running()) break;
    state_[State::exact] != 0 ? newton_iteration(history) : memory_iteration(history);
  }
}

void RegressionSolver::set_form() {
  form_ = settings_;
  if (state_[State::phase] == State::kNormalizedFirst) form_.form = "normalized";
}

void RegressionSolver::evaluate() {
  point_ = data_.point(state_.logits, form_);
  moved();
}

void RegressionSolver::moved() {
  state_[State::points] += 1;
  statistics_ = rows_ = Tensor();
  fresh_ = false;
}

void RegressionSolver::settle() {
  if (state_[State::resident] != 0) return;
  state_.logits = matvec(state_.x);
  state_[State::resident] = 1, state_[State::since_refresh] = 0;
  evaluate();
}

void RegressionSolver::evaluate_at_x() {
  const Clock clock(state_[State::seconds_reads]);
  state_[State::reads] += 1, state_[State::resident] = 0;
  const RegressionData::Evaluation found = data_.evaluate(state_.x, form_);
  point_ = found.point, state_.gradient = found.gradient, state_.x = found.x;
  moved();
}

Point RegressionSolver::trial(const Tensor& direction, double step) {
  return data_.point(state_.logits, direction, step, form_);
}

Tensor RegressionSolver::matvec(const Tensor& v) {
  const Clock clock(state_[State::seconds_reads]);
  state_[State::reads] += 1;
  return data_.matvec(v);
}

void RegressionSolver::fill_rows() {
  if (rows_.defined()) return;
  if (!statistics_.defined()) statistics_ = data_.statistics_of(point_);
  rows_ = data_.vectors(state_.logits, statistics_, form_);
}

void RegressionSolver::curve() {
  if (fresh_) return;
  fill_rows();
  if (in_part() && curve_in_part()) {
    fresh_ = true;
    return;
  }
  if (in_part()) sample_failed(/*hopeless=*/true);
  const Clock clock(state_[State::seconds_grams]);
  RegressionCurvature found =
      data_.curvature_here(rows_, statistics_, state_[State::full_mode] != 0 ? "full" : "gauss_newton");
  if (is(SolveMethod::cg)) found = hosted(found);
  state_[State::reads] += 1, state_[State::grams] += 1;
  gradient_ = found.gradient, hessian_ = found.hessian, noise_ = found.noise;
  fresh_ = true;
}

double RegressionSolver::rounding() const {
  const double rows = static_cast<double>(std::max<int64_t>(data_.rows(), 1)), loss = point_[Numbers::loss];
  return epsilon_ *
         (12 * std::sqrt(2 * loss * point_[Numbers::magnitude] / rows) * (1 + point_[Numbers::largest]) + 4 * loss);
}

bool RegressionSolver::promises_nothing(double promised) const {
  return promised <=
         std::max(options_.ftol * point_[Numbers::loss], 4 * epsilon_ * epsilon_ * point_[Numbers::magnitude]);
}

bool RegressionSolver::is_rounding(double relative_gradient) const {
  return relative_gradient <= std::max(options_.gtol, 3 * epsilon_);
}

bool RegressionSolver::flat(double before) {
  state_[State::flat] = std::abs(log_loss(point_) - before) < 1e-10 ? state_[State::flat] + 1 : 0;
  return state_[State::flat] >= kFlatSteps;
}

// In the rescaled form: is the loss escaping to a sum of 0?
void RegressionSolver::watch_sum() {
  if (settings_.form != "rescaled" || state_[State::phase] != State::kFinal) return;
  if (point_[Numbers::log_sum] >= state_[State::anchor_log_sum] - 1) return;
  state_.x = state_.anchor, state_[State::resident] = 0;
  settle();
  finish(Status::drift);
}

void RegressionSolver::converged(Status status) {
  if (settings_.form != "rescaled" || state_[State::phase] != State::kNormalizedFirst) return finish(status);
  // The normalized form's solution: from here the rescaled loss, or back to here.
  settle();
  certify();
  state_[State::phase] = State::kFinal;
  state_[State::anchor_log_sum] = point_[Numbers::log_sum];
  state_.anchor = state_.x;
  state_[State::damping] = options_.damping, state_[State::full_mode] = 0, state_[State::flat] = 0;
  state_[State::exact] = 1;
  set_form();
  evaluate();
}

void RegressionSolver::stop(Status status) {
  const bool near_pole = form_.form == "normalized" && point_[Numbers::spread] > 1 / std::sqrt(epsilon_);
  converged(near_pole ? Status::singular_sum : status);
}

void RegressionSolver::finish(Status status) {
  // Toward z = 0 a two-sided loss has minima of no interest, or an infimum that nothing attains.
  if (status != Status::non_finite && form_.kind != "exp" && point_[Numbers::largest] < kVanishing)
    status = Status::vanishing;
  state_[State::status] = static_cast<double>(status);
}

// Delta = (|c| / |f|)^2 / (1 - R^2) at the normalized solution: below 1/4 the rescaled loss has a minimum nearby.
void RegressionSolver::certify() {
  if (by_diagonal()) return;
  fill_rows();
  const Tensor q = rows_.select(-2, Rows::q), &weight = data_.problem().row_weight;
  Tensor diagonal = rows_.select(-2, Rows::p).square();
  if (weight.defined()) diagonal = diagonal * weight;
  const RegressionCurvature found = data_.weighted_gram(q, diagonal, at::zeros_like(q), 0);
  state_[State::reads] += 1, state_[State::grams] += 1;
  const Tensor &h = found.gradient, W = whitening(found.hessian, 1e-13);
  const double square = point_[Numbers::square], part = at::matmul(W.mT(), h).square().sum().item<double>() / square;
  const double residual = 2 * (point_[Numbers::loss] - point_[Numbers::penalty]);
  state_[State::certificate] = residual / square / std::max(1 - part, 1e-16);
}

void RegressionSolver::record(std::vector<Tensor>& history, double step, double factor, double model) const {
  const double form = form_.form == "normalized" ? 1 : form_.form == "plain" ? 2 : 0;
  const double row[History::count] = {state_[State::iterations],
                                      log_loss(point_),
                                      state_[State::relative_gradient],
                                      step,
                                      factor,
                                      state_[State::damping],
                                      model,
                                      form,
                                      state_[State::reads]};
  history.push_back(at::tensor(at::ArrayRef<double>(row, History::count)));
}

}  // namespace torch_rescaled::solvers
