// SPDX-License-Identifier: BSD-3-Clause
// Damped Newton with z = A x and t = A s resident: two reads of A an iteration, the line search free. docs/solver.md.
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

#include "../ops/regression/resident.h"
#include "regression_state.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;

constexpr double kLeastDamping = 1e-12, kMostDamping = 1e10;
constexpr double kArmijo = 1e-4;
constexpr double kReach = 2, kLongReach = 16;  // largest |step A s| tried first, and ever
constexpr double kVanishing = 1e-3;            // largest logit below which sinh is linear, and cosh constant
constexpr int kTries = 12, kFlatSteps = 5, kRefresh = 10;

class Clock {
 public:
  explicit Clock(double& total) : total_(total), start_(std::chrono::steady_clock::now()) {}
  ~Clock() { total_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count(); }
  Clock(const Clock&) = delete;
  Clock& operator=(const Clock&) = delete;

 private:
  double& total_;
  std::chrono::steady_clock::time_point start_;
};

class Solver {
 public:
  Solver(const RegressionPoint& x, const RegressionSettings& settings, const Options& options, State& state)
      : problem_(x),
        settings_(settings),
        options_(options),
        state_(state),
        epsilon_(x.b.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                                  : std::numeric_limits<float>::epsilon()) {
    set_form();
    evaluate();
  }

  // At most `chunk` iterations; lines of the history are added.
  void run(int64_t chunk, std::vector<Tensor>& history) {
    if (running() && !std::isfinite(point_[Numbers::loss])) finish(Status::non_finite);
    for (; chunk > 0 && running(); --chunk) {
      if (state_[State::iterations] >= static_cast<double>(options_.max_iterations)) finish(Status::max_iterations);
      if (!running()) break;
      iterate(history);
    }
  }
  const Point& point() const { return point_; }
  bool running() const { return state_[State::status] == static_cast<double>(Status::running); }

 private:
  void set_form() {
    form_ = settings_;
    if (state_[State::phase] == State::kNormalizedFirst) form_.form = "normalized";
  }
  void evaluate() {
    point_ = numbers<Numbers::count>(regression_statistics(state_.logits, {}, {}, problem_, form_).squeeze(-2));
    rows_ = Tensor();
    fresh_ = false;
  }
  Point trial(const Tensor& direction, double step) {
    const Tensor steps = at::full({1}, step, state_.logits.options().dtype(at::kDouble));
    return numbers<Numbers::count>(regression_statistics(state_.logits, direction, steps, problem_, form_));
  }
  Tensor matvec(const Tensor& v) {
    const Clock clock(state_[State::seconds_reads]);
    state_[State::reads] += 1;
    return regression_matvec(problem_.A, v);
  }

  // The vectors of the point, unless they are there.
  void fill_rows() {
    if (rows_.defined()) return;
    statistics_ = at::tensor(at::ArrayRef<double>(point_.data(), point_.size())).to(state_.logits.device());
    rows_ = regression_rows(state_.logits, statistics_, problem_, form_);
  }
  // Gradient and Hessian at the point, unless they are there.
  void curve() {
    if (fresh_) return;
    fill_rows();
    const Clock clock(state_[State::seconds_grams]);
    const RegressionCurvature found =
        regression_curvature(problem_.A, rows_, statistics_, state_[State::full_mode] != 0 ? "full" : "gauss_newton");
    state_[State::reads] += 1, state_[State::grams] += 1;
    gradient_ = wide(found.gradient), hessian_ = wide(found.hessian), noise_ = wide(found.noise);
    fresh_ = true;
  }

  // The largest |g_k| over the root of the sum of squares of its terms: eps at the best there is.
  double relative_gradient() const {
    if (gradient_.numel() == 0) return 0;
    const Tensor size = noise_.sqrt();
    return at::where(size > 0, gradient_.abs() / size, at::zeros_like(size)).max().item<double>();
  }

  void iterate(std::vector<Tensor>& history) {
    curve();
    state_[State::iterations] += 1;
    const double gradient = state_[State::gradient] = relative_gradient();
    const bool full = state_[State::full_mode] != 0;
    if (gradient <= std::max(options_.gtol, 3 * epsilon_)) {
      record(history, 0, 0);
      return converged(Status::gradient);
    }
    const Direction found = newton_direction(hessian_, gradient_, state_[State::damping]);
    if (found.deficient) state_[State::deficient] = 1;
    if (full && found.shift > 1e-2) {  // far from definite: Gauss-Newton knows better
      state_[State::full_mode] = 0, fresh_ = false;
      return;
    }
    if (!found.step.defined() || !found.step.isfinite().all().item<bool>()) {
      record(history, 0, 0);
      return gradient == 0 ? converged(Status::gradient) : stop(Status::stalled);
    }
    const Tensor step = found.step.to(state_.x.options()), t = matvec(step);
    const Models models(numbers<Model::count>(regression_model(rows_, t)), point_[Numbers::square]);
    search(step, t, models, history);
  }

  void search(const Tensor& step, const Tensor& t, const Models& models, std::vector<Tensor>& history) {
    const double promised = -models.slope, loss = point_[Numbers::loss], reach = models.largest,
                 size = 1 + point_[Numbers::largest], magnitude = point_[Numbers::magnitude];
    Status last = Status::running;
    if (reach <= std::max(options_.xtol, 8 * epsilon_) * size) last = Status::step;
    if (promised <= std::max(options_.ftol * loss, 4 * epsilon_ * epsilon_ * magnitude)) last = Status::loss;
    const double rows = static_cast<double>(std::max<int64_t>(state_.logits.numel(), 1));
    const double noise = epsilon_ * (12 * std::sqrt(2 * loss * magnitude / rows) * size + 4 * loss);
    const auto accepted = [&](double factor, double found) {
      return found > kArmijo * factor * promised ||
             (promised < 10 * noise && found >= -noise && last == Status::running);
    };
    double factor = reach > kReach ? kReach / reach : 1;
    Point next = trial(t, factor);
    double found = gain(point_, next);
    bool good = accepted(factor, found);
    if (last != Status::running) {  // the last step: taken unless the loss, which it hardly moves, says otherwise
      if (found >= -noise) take(step, t, factor);
      record(history, factor * reach, factor);
      return converged(last);
    }
    if (good) {
      while (factor < 1 && 2 * factor * reach <= kLongReach) {
        const Point further = trial(t, 2 * factor);
        const double more = gain(point_, further);
        if (!(more > 1.05 * found)) break;
        factor *= 2, next = further, found = more;
      }
    } else {
      for (int i = 0; i < kTries && !good; ++i) {
        factor *= i < 2 ? .5 : .25;
        next = trial(t, factor);
        found = gain(point_, next);
        good = accepted(factor, found);
      }
    }
    if (!good) {
      record(history, 0, 0);
      state_[State::damping] = 100 * std::max(state_[State::damping], 1e-8);
      if (state_[State::damping] > kMostDamping) stop(Status::stalled);
      return;
    }
    const double by_gauss_newton = models.predicted(factor, false), by_full = models.predicted(factor, true),
                 ratio = found / by_gauss_newton;
    state_[State::damping] = factor < .05 || ratio < .1 ? 10 * std::max(state_[State::damping], 1e-8)
                                                        : std::max(state_[State::damping] / 10, kLeastDamping);
    state_[State::full_mode] =
        std::abs(found - by_full) < .7 * std::abs(found - by_gauss_newton) && by_full > 0 && factor * reach < 1;
    const double before = log_loss(point_);
    take(step, t, factor);
    record(history, factor * reach, factor);
    state_[State::flat] = std::abs(log_loss(point_) - before) < 1e-10 ? state_[State::flat] + 1 : 0;
    if (state_[State::flat] >= kFlatSteps) return converged(Status::flat);
    watch_sum();
  }

  void take(const Tensor& step, const Tensor& t, double factor) {
    state_.x = state_.x + factor * step;
    state_[State::since_refresh] += 1;
    if (state_[State::since_refresh] >= kRefresh) {
      state_.logits = matvec(state_.x);
      state_[State::since_refresh] = 0;
    } else {
      state_.logits = state_.logits + factor * t;
    }
    evaluate();  // at the rounded logits, which are all that a resumed solve has
  }

  // In the rescaled form: is the loss escaping to a sum of 0?
  void watch_sum() {
    if (settings_.form != "rescaled" || state_[State::phase] != State::kFinal) return;
    if (point_[Numbers::log_sum] >= state_[State::anchor_log_sum] - 1) return;
    state_.x = state_.anchor;
    state_.logits = matvec(state_.x);
    evaluate();
    finish(Status::drift);
  }

  void converged(Status status) {
    if (settings_.form != "rescaled" || state_[State::phase] != State::kNormalizedFirst) return finish(status);
    // The normalized form's solution: from here the rescaled loss, or back to here.
    certify();
    state_[State::phase] = State::kFinal;
    state_[State::anchor_log_sum] = point_[Numbers::log_sum];
    state_.anchor = state_.x;
    state_[State::damping] = options_.damping, state_[State::full_mode] = 0, state_[State::flat] = 0;
    set_form();
    evaluate();
  }
  void stop(Status status) {
    const bool near_pole = form_.form == "normalized" && point_[Numbers::spread] > 1 / std::sqrt(epsilon_);
    converged(near_pole ? Status::singular_sum : status);
  }
  void finish(Status status) {
    // Toward z = 0 a two-sided loss has minima of no interest, or an infimum that nothing attains.
    if (status != Status::non_finite && form_.kind != "exp" && point_[Numbers::largest] < kVanishing)
      status = Status::vanishing;
    state_[State::status] = static_cast<double>(status);
  }

  // Delta = (|c| / |f|)^2 / (1 - R^2) at the normalized solution: below 1/4 the rescaled loss has a minimum nearby.
  void certify() {
    fill_rows();
    const Tensor zero = at::zeros_like(rows_.select(-2, 0));
    Tensor diagonal = rows_.select(-2, Rows::p).square();
    if (problem_.row_weight.defined()) diagonal = diagonal * problem_.row_weight;
    const Tensor q = rows_.select(-2, Rows::q);
    const RegressionCurvature found =
        regression_curvature(problem_.A, at::stack({q, diagonal, zero, zero, zero, zero, zero}),
                             at::zeros_like(statistics_), "gauss_newton");
    state_[State::reads] += 1, state_[State::grams] += 1;
    const Tensor h = wide(found.gradient), W = whitening(wide(found.hessian), 1e-13);
    const double square = point_[Numbers::square], part = at::matmul(W.mT(), h).square().sum().item<double>() / square;
    const double residual = 2 * (point_[Numbers::loss] - point_[Numbers::penalty]);
    state_[State::certificate] = residual / square / std::max(1 - part, 1e-16);
  }

  void record(std::vector<Tensor>& history, double step, double factor) const {
    const bool normalized = form_.form == "normalized";
    const double row[History::count] = {state_[State::iterations],
                                        log_loss(point_),
                                        state_[State::gradient],
                                        step,
                                        factor,
                                        state_[State::damping],
                                        state_[State::full_mode],
                                        normalized              ? 1.
                                        : form_.form == "plain" ? 2.
                                                                : 0.,
                                        state_[State::reads]};
    history.push_back(at::tensor(at::ArrayRef<double>(row, History::count)));
  }

  const RegressionPoint& problem_;
  const RegressionSettings& settings_;
  const Options& options_;
  State& state_;
  RegressionSettings form_;
  const double epsilon_;
  Point point_{};
  Tensor statistics_, rows_, gradient_, hessian_, noise_;
  bool fresh_ = false;
};

}  // namespace

int64_t state_size(int64_t columns, int64_t rows) { return State::count + 2 * columns + rows; }

Solution solve_problem(const RegressionPoint& point, const RegressionSettings& settings, const Options& options,
                       const Tensor& packed, int64_t chunk) {
  const int64_t n = point.A.size(-2), d = point.A.size(-1);
  State state;
  double seconds = 0;
  std::vector<Tensor> history;
  Point numbers_now{};
  {
    const Clock clock(seconds);
    if (packed.defined()) {
      state = State::unpack(packed, point.b.options(), d, n);
    } else {
      int64_t reads = 0;
      state.x = point.x.defined() ? point.x.clone() : starting_point(point, settings, reads);
      state.anchor = at::zeros_like(state.x);
      state.logits = regression_matvec(point.A, state.x);
      state[State::reads] = static_cast<double>(reads + 1);
      state[State::phase] = settings.form == "rescaled" ? State::kNormalizedFirst : State::kFinal;
      state[State::damping] = options.damping;
      state[State::certificate] = std::numeric_limits<double>::quiet_NaN();
    }
    // A caller who goes on has asked for more.
    if (state[State::status] == static_cast<double>(Status::max_iterations))
      state[State::status] = static_cast<double>(Status::running);
    Solver solver(point, settings, options, state);
    solver.run(chunk, history);
    numbers_now = solver.point();
  }
  state[State::seconds] += seconds;
  // In the order of SolveNumber.
  const double summary[kNumbers] = {
      state[State::status],        log_loss(numbers_now),       state[State::gradient],
      state[State::iterations],    state[State::reads],         state[State::grams],
      state[State::certificate],   state[State::deficient],     1 / numbers_now[Numbers::concentration],
      state[State::seconds_reads], state[State::seconds_grams], state[State::seconds]};
  Solution out;
  out.x = state.x;
  out.summary = at::tensor(at::ArrayRef<double>(summary, kNumbers));
  out.history = history.empty() ? at::zeros({0, History::count}, at::kDouble) : at::stack(history);
  out.state = state.pack();
  return out;
}

}  // namespace torch_rescaled::solvers
