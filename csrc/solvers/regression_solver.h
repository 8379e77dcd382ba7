// SPDX-License-Identifier: BSD-3-Clause
// One regression problem being solved: docs/solver.md. Steps of Newton's method (regression_newton.cpp) keep z = A x
// and t = A s resident; those of L-BFGS (regression_lbfgs.cpp) know a point by one read of A. regression_sampled.cpp:
// Hessians of some rows.
#pragma once
#include <chrono>
#include <utility>
#include <vector>

#include "regression_state.h"

namespace torch_rescaled::solvers {

inline constexpr double kArmijo = 1e-4;  // of what the slope promises, a step must gain

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

class RegressionSolver {
 public:
  // `state` as `begin` or an earlier solver left it.
  RegressionSolver(const RegressionData&, const RegressionSettings&, const Options&, State& state);
  // A fresh state: the method, the start, and what the method needs to know there.
  static void begin(const RegressionData&, const RegressionSettings&, const Options&, State& state);

  // At most `chunk` iterations; lines of the history are added.
  void run(int64_t chunk, std::vector<Tensor>& history);

 private:
  bool running() const { return state_[State::status] == static_cast<double>(Status::running); }
  bool is(SolveMethod) const;
  bool with_memory() const { return is(SolveMethod::lbfgs) || is(SolveMethod::sampled); }
  // Whether Hessians of all rows are not formed: there is a sample's, or (cg) a diagonal.
  bool in_part() const { return state_[State::sampling] != 0 || by_diagonal(); }

  // Knowing a point.
  void set_form();
  void evaluate();       // its numbers, from the logits
  void moved();          // its numbers are others
  void settle();         // its logits and numbers: a read of A, unless they are there
  void evaluate_at_x();  // its numbers and gradient, without logits: a read
  void fill_rows();      // the vectors of the resident point, unless they are there
  void curve();          // its gradient and Hessian: a read, unless they are there
  bool curve_in_part();
  Tensor matvec(const Tensor& v);
  Point trial(const Tensor& direction, double step);  // on the ray from the logits: no read

  // Newton's method.
  void newton_iteration(std::vector<Tensor>& history);
  double model_of_step() const;  // of the history
  struct Plan {
    Direction found;
    Tensor step, t;  // t = A step; undefined: no step
    RegressionData::Ahead ahead;
  };
  // The step from here, and the relative gradient in the state: by looking at numbers as they come, or once, after all
  // that they decide in the ordinary case was asked for.
  Plan plan();
  bool plan_unseen(Plan&);  // false: seen, it must be made otherwise
  bool is_too_far(const Direction& found) const;
  Tensor logits_after(const Tensor& step, const Tensor& t);
  void search(const Plan&, const Models&, std::vector<Tensor>& history);
  void take(const Plan&, double factor);

  // Hessians of samples.
  static bool pays_to_sample(const RegressionData&, const Options&);
  bool by_diagonal() const;
  RowSampler sampler();
  void sample_failed(bool hopeless);
  Direction conjugate_direction();

  // L-BFGS.
  void memory_iteration(std::vector<Tensor>& history);
  const Tensor& x_here();  // x on the CPU

  // Ends.
  double rounding() const;                       // of the loss
  bool promises_nothing(double promised) const;  // worth a step
  bool is_rounding(double relative_gradient) const;
  bool flat(double before);  // for many steps, this one included
  void watch_sum();
  void converged(Status status);
  void stop(Status status);
  void finish(Status status);
  void certify();
  void record(std::vector<Tensor>& history, double step, double factor, double model) const;

  const RegressionData& data_;
  const RegressionSettings& settings_;
  const Options& options_;
  State& state_;
  RegressionSettings form_;
  Sampling sampling_;
  const double epsilon_;
  Point& point_;
  std::pair<Tensor, Tensor> x_here_;  // an x, and its copy on the CPU
  Tensor statistics_;                 // the numbers of the point where the rows are, or undefined
  Tensor rows_, gradient_, hessian_, noise_;
  bool fresh_ = false;
};

}  // namespace torch_rescaled::solvers
