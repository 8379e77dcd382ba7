// SPDX-License-Identifier: BSD-3-Clause
// One map's problem being solved: docs/solver.md. Steps of Gauss-Newton and Newton are in gauss_newton.cpp, those of
// L-BFGS in map_lbfgs.cpp.
#pragma once
#include <cmath>
#include <memory>
#include <optional>
#include <vector>

#include "gauss_newton.h"

namespace torch_rescaled::solvers {

using Status = SolveStatus;

inline constexpr double kMapArmijo = 1e-4;  // of what the slope promises, a step must gain
inline constexpr double kMapReach = 4;      // root of the mean square of the logits' change that is tried first
inline constexpr double kMapRounding = 64;  // eps^2 times this and the squares that the loss is made of is its rounding

double inner_product(const Tensor& a, const Tensor& b);

struct MapStep {
  Tensor step, curved;    // and the curvature's product with it
  bool negative = false;  // a direction of negative curvature ended it, or left nothing
};

class MapSolver {
 public:
  MapSolver(const MapProblem& problem, const GaussNewtonOptions& options, MapState& state)
      : problem_(problem), options_(options), state_(state), epsilon_(problem.final->epsilon()) {}
  void run(int64_t chunk, std::vector<Tensor>& history);
  double log_loss() { return std::log(place().loss) + place().log_scale; }

 private:
  using S = MapState;
  static constexpr double kModelOfMemory = 2;  // as in the history
  bool running() const { return state_[S::status] == static_cast<double>(Status::running); }
  bool first() const { return state_[S::phase] == 0; }
  const Objective& objective() const { return first() ? *problem_.first : *problem_.final; }
  Place& place();
  std::unique_ptr<Place> evaluate(const Tensor& unknowns);
  double gain(const Place& to);
  double noise();                       // of the loss, by rounding
  bool gains_nothing(double promised);  // worth a step
  // Of a gradient by its size in the metric, as the history has it.
  void measure(double size);

  // Gauss-Newton's and Newton's steps.
  void iterate(std::vector<Tensor>& history);
  MapStep direct_step(const Tensor& gradient);
  MapStep conjugate_gradient(const Metric& metric, const Tensor& gradient);
  void search(const MapStep& found, std::vector<Tensor>& history);

  // L-BFGS.
  bool memory_iteration(std::vector<Tensor>& history);  // false: Gauss-Newton's steps from here
  void settle_metric();                                 // of the state's point, or a new one from here
  Tensor memory_step(const Tensor& gradient) const;
  void leave_memory();  // for Gauss-Newton's steps
  void forget();

  // Ends.
  void record(std::vector<Tensor>& history, double step, double factor, double model);
  // Has the loss moved by less than that, of its logarithm, for many steps, this one included?
  bool is_flat(double before, double less);
  void converged(Status status);
  void stop(Status status);
  void finish(Status status);
  void watch_sum();

  const MapProblem& problem_;
  const GaussNewtonOptions& options_;
  MapState& state_;
  const double epsilon_;
  std::unique_ptr<Place> place_;
  std::optional<Metric> metric_;  // of L-BFGS
};

}  // namespace torch_rescaled::solvers
