// SPDX-License-Identifier: BSD-3-Clause
// A solve from its beginning, or from where another stopped, to its report.
#include <ATen/TensorOperators.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

#include "regression_solver.h"

namespace torch_rescaled::solvers {

void RegressionSolver::begin(const RegressionData& data, const RegressionSettings& settings, const Options& options,
                             State& state) {
  state[State::phase] = settings.form == "rescaled" ? State::kNormalizedFirst : State::kFinal;
  state[State::damping] = options.damping;
  state[State::certificate] = state[State::gram_ratio] = std::numeric_limits<double>::quiet_NaN();
  state[State::exact] = 1;
  const RegressionPoint& problem = data.problem();
  state[State::seed] = static_cast<double>(options.sampling.seed);
  const int64_t d = data.columns(), n = problem.b.size(0);
  state.logits = at::zeros_like(problem.b);
  state.sizes = {false, at::zeros({n}, problem.b.options().dtype(at::kDouble)),
                 at::zeros({d, RowSizes::kSketch}, at::kDouble)};
  RegressionSolver solver(data, settings, options, state);
  SolveMethod method = options.method == "lbfgs"     ? SolveMethod::lbfgs
                       : options.method == "sampled" ? SolveMethod::sampled
                       : options.method == "cg"      ? SolveMethod::cg
                                                     : SolveMethod::newton;
  if (options.method == "auto")
    method = data.agreed(choose_method(data, settings.kind != "exp" && !problem.x.defined(), state[State::gram_ratio]),
                         state[State::gram_ratio]);
  state[State::method] = static_cast<double>(method);
  const bool samples = (method == SolveMethod::sampled || method == SolveMethod::cg) && !solver.by_diagonal() &&
                       pays_to_sample(data, options);
  state[State::sampling] = samples;
  Start start;
  RowSampler sampler = solver.sampler();
  if (problem.x.defined())
    start.x = problem.x.clone();
  else
    start = starting_point(data, solver.form_, samples ? &sampler : nullptr, solver.by_diagonal());
  state[State::sized] = state.sizes.known;
  state[State::samples] += samples && start.model.hessian.defined();
  state.x = start.x, state.anchor = at::zeros_like(state.x);
  state[State::reads] += static_cast<double>(start.reads), state[State::grams] = static_cast<double>(start.grams);
  if (solver.with_memory() && start.model.hessian.defined()) {
    state.memory.begin(start.model.hessian, start.model.noise, 0);
    state[State::exact] = 0;
    solver.evaluate_at_x();
  } else {
    if (State::Parts(options.method, is_wide(problem.design())).memory)
      state.memory.begin(at::zeros({d, d}, at::kDouble), wide(state.anchor), 0);
    state.gradient = wide(state.anchor);
    solver.settle();
  }
}

int64_t state_size(const rescaled::ops::Design& A, const std::string& method) {
  return State::size(A.columns().expect_int(), A.rows().expect_int(), State::Parts(method, is_wide(A)));
}

Solution solve_problem(const RegressionPoint& point, const RegressionSettings& settings, const Options& options,
                       const Tensor& packed, int64_t chunk, const Group& group) {
  const int64_t n = point.b.size(-1), d = point.design().columns().expect_int();
  const State::Parts parts(options.method, is_wide(point.design()));
  const RegressionData data(point, group);
  State state;
  double seconds = 0;
  std::vector<Tensor> history;
  {
    const Clock clock(seconds);
    if (packed.defined())
      state = State::unpack(packed, point.b.options(), d, n, parts);
    else
      RegressionSolver::begin(data, settings, options, state);
    // A caller who goes on has asked for more.
    if (state[State::status] == static_cast<double>(Status::max_iterations))
      state[State::status] = static_cast<double>(Status::running);
    RegressionSolver(data, settings, options, state).run(chunk, history);
  }
  state[State::seconds] += seconds;
  // In the order of SolveNumber.
  const double summary[kNumbers] = {
      state[State::status],        log_loss(state.point),       state[State::relative_gradient],
      state[State::iterations],    state[State::reads],         state[State::grams],
      state[State::certificate],   state[State::deficient],     1 / state.point[Numbers::concentration],
      state[State::seconds_reads], state[State::seconds_grams], state[State::seconds],
      state[State::method],        state[State::gram_ratio],    state[State::samples]};
  Solution out;
  out.x = state.x;
  out.summary = at::tensor(at::ArrayRef<double>(summary, kNumbers));
  out.history = history.empty() ? at::zeros({0, History::count}, at::kDouble) : at::stack(history);
  out.state = state.pack(parts);
  return out;
}

}  // namespace torch_rescaled::solvers
