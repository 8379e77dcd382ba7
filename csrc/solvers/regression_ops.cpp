// SPDX-License-Identifier: BSD-3-Clause
// newton_step and solve_regression as operators: batches, and the derivative of a solution by the implicit function
// theorem.
#include <ATen/Parallel.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/nan_to_num.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <limits>

#include "../ops/check.h"
#include "../ops/family.h"
#include "../ops/regression/checks.h"
#include "../ops/regression/primitives.h"
#include "../ops/regression/resident.h"
#include "inverse_hessian.h"
#include "map_implicit.h"
#include "regression_state.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;
using Numbers = rescaled::RegressionStatistics;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;

#define SOLVE_POINT                                                                                   \
  const Tensor &A, const Tensor &b, const MaybeTensor &row_weight, const MaybeTensor &penalty_weight, \
      const MaybeTensor &x0, const MaybeTensor &state
#define SOLVE_OPTIONS                                                                                       \
  c10::string_view method, int64_t max_iterations, double gtol, double ftol, double xtol, double damping,   \
      std::optional<c10::string_view> group, int64_t chunk, c10::string_view sampling, int64_t sample_rows, \
      int64_t seed, RESCALED_PATTERN, c10::SymInt n_columns
using SolveSignature = Four(SOLVE_POINT, RESCALED_REGRESSION_SETTINGS, SOLVE_OPTIONS);

// Leading dimensions as one: expanded views.
Tensor flattened(const Tensor& t, int64_t suffix, const std::vector<int64_t>& full) {
  if (!t.defined()) return t;
  std::vector<int64_t> sizes = full;
  sizes.insert(sizes.end(), t.sizes().end() - suffix, t.sizes().end());
  const Tensor whole = t.detach().expand(sizes);
  return full.empty() ? whole.unsqueeze(0) : whole.flatten(0, static_cast<int64_t>(full.size()) - 1);
}
Tensor restored(const Tensor& t, const std::vector<int64_t>& full) {
  std::vector<int64_t> sizes = full;
  sizes.insert(sizes.end(), t.sizes().begin() + 1, t.sizes().end());
  return t.reshape(sizes);
}

void check_sampling(const char* op, c10::string_view sampling, int64_t sample_rows, int64_t seed) {
  RESCALED_CHECK(VALUE,
                 sampling == "auto" || sampling == "weight" || sampling == "leverage" || sampling == "row_norm" ||
                     sampling == "uniform",
                 op, "sampling 'auto', 'weight', 'leverage', 'row_norm' or 'uniform', got '", sampling, "'");
  RESCALED_CHECK(VALUE, sample_rows >= 0, op, "sample_rows >= 0, got ", sample_rows);
  RESCALED_CHECK(VALUE, seed >= 0 && seed < (int64_t{1} << 53), op, "a seed in [0, 2^53), got ", seed);
}

void check_solver(const RegressionPoint& x, const Tensor& state, c10::string_view method, int64_t max_iterations,
                  double gtol, double ftol, double xtol, double damping, int64_t chunk) {
  const char* op = "solve_regression";
  RESCALED_CHECK(VALUE,
                 method == "newton" || method == "lbfgs" || method == "sampled" || method == "cg" || method == "auto",
                 op, "method 'newton', 'lbfgs', 'sampled', 'cg' or 'auto', got '", method, "'");
  RESCALED_CHECK(VALUE, max_iterations >= 0, op, "max_iterations >= 0, got ", max_iterations);
  for (const auto& [name, value] :
       {std::pair<const char*, double>{"gtol", gtol}, {"ftol", ftol}, {"xtol", xtol}, {"damping", damping}})
    RESCALED_CHECK(VALUE, value >= 0 && value <= std::numeric_limits<double>::max(), op, "a finite ", name,
                   " >= 0, got ", value);
  RESCALED_CHECK(VALUE, chunk >= 0, op, "chunk >= 0, got ", chunk);
  const Design A = x.design();
  RESCALED_CHECK(VALUE, !is_wide(A) || method == "auto" || method == "cg" || A.columns() <= kMostColumns, op,
                 "at most ", kMostColumns, " columns of a sparse A with method '", method,
                 "', which forms a matrix of d x d ('cg' does not), got ", A.columns());
  if (!state.defined()) return;
  RESCALED_CHECK(TYPE, state.scalar_type() == at::kDouble, op, "state of dtype float64, got ", state.scalar_type());
  const int64_t size = state_size(A, std::string(method));
  RESCALED_CHECK(VALUE, state.dim() >= 1 && state.size(-1) == size, op, "state of shape [*, ", size,
                 "] as an earlier call with this problem and method returned it, got ", shape(state));
}

// That all processes of a group were asked for the same: else they would wait for each other, or mix their sums.
void check_alike(const Group& group, const RegressionPoint& x, const Tensor& state, const Options& options,
                 const RegressionSettings& settings, int64_t problems, int64_t chunk) {
  if (group.single()) return;
  const auto code = [](const std::string& name) {  // of names that are known, all different
    double number = 0;
    for (const char c : name) number = 32 * number + c;
    return number;
  };
  const std::pair<const char*, double> facts[] = {
      {"d", static_cast<double>(x.design().columns().expect_int())},
      {"dtype of b", static_cast<double>(x.b.scalar_type())},
      {"number of problems", static_cast<double>(problems)},
      {"kind", code(settings.kind)},
      {"form", code(settings.form)},
      {"method", code(options.method)},
      {"max_iterations", static_cast<double>(options.max_iterations)},
      {"gtol", options.gtol},
      {"ftol", options.ftol},
      {"xtol", options.xtol},
      {"damping", options.damping},
      {"chunk", static_cast<double>(chunk)},
      {"presence of a state", state.defined()},
      {"x0", x.x.defined() ? at::nan_to_num(x.x.detach().to(at::kDouble)).sum().item<double>() : -kInfinity}};
  std::vector<double> here;
  for (const auto& fact : facts) here.push_back(fact.second);
  const Tensor all = wide(group.gathered(at::tensor(here).to(x.A.device()))), first = all[0];
  for (size_t i = 0; i < here.size(); ++i)
    RESCALED_CHECK(VALUE, all.select(1, static_cast<int64_t>(i)).eq(first[static_cast<int64_t>(i)]).all().item<bool>(),
                   "solve_regression", "the same ", facts[i].first,
                   " on every process of the group, got different ones");
}

// All problems, one after another, or side by side where each is too small for threads of its own.
Four solve(SOLVE_POINT, RESCALED_REGRESSION_SETTINGS, SOLVE_OPTIONS) {
  const RegressionPoint given{A,
                              b,
                              defined_or(x0),
                              defined_or(row_weight),
                              defined_or(penalty_weight),
                              pattern_of(crow_indices, col_indices, n_columns)};
  const RegressionSettings settings = RESCALED_THE_REGRESSION_SETTINGS;
  check_solver(given, defined_or(state), method, max_iterations, gtol, ftol, xtol, damping, chunk);
  check_sampling("solve_regression", sampling, sample_rows, seed);
  std::vector<int64_t> full;
  for (const c10::SymInt& size : leading_sizes(given)) full.push_back(size.expect_int());
  const Design design = given.design();
  const Pattern& pattern = given.pattern;
  const RegressionPoint all{
      flattened(A, design.suffix(), full),
      flattened(b, 1, full),
      flattened(given.x, 1, full),
      flattened(given.row_weight, 1, full),
      flattened(given.penalty_weight, 1, full),
      {flattened(pattern.crow_indices, 1, full), flattened(pattern.col_indices, 1, full), pattern.n_columns}};
  const Tensor states = flattened(defined_or(state), 1, full);
  const int64_t count = all.A.size(0), n = b.size(-1), d = design.columns().expect_int();
  const Options options{
      std::string(method), max_iterations, gtol, ftol, xtol, damping, {std::string(sampling), sample_rows, seed}};
  RESCALED_CHECK(VALUE, !group || (method != "sampled" && method != "cg"), "solve_regression",
                 "method 'newton', 'lbfgs' or 'auto' with a group, got '", method, "'");
  RESCALED_CHECK(VALUE, !group || !is_wide(design) || method != "auto", "solve_regression", "at most ", kMostSquare,
                 " columns of a sparse A with a group and method 'auto', got ", design.columns());
  const Group processes(std::string(group.value_or("")));
  check_alike(processes, given, defined_or(state), options, settings, count, chunk);
  std::vector<Solution> found(static_cast<size_t>(count));
  const auto one = [](const Tensor& t, int64_t i) { return t.defined() ? t.select(0, i) : t; };
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      found[static_cast<size_t>(i)] =
          solve_problem({one(all.A, i),
                         one(all.b, i),
                         one(all.x, i),
                         one(all.row_weight, i),
                         one(all.penalty_weight, i),
                         {one(all.pattern.crow_indices, i), one(all.pattern.col_indices, i), pattern.n_columns}},
                        settings, options, one(states, i), chunk, processes);
  };
  if (A.device().is_cpu() && !group && A.size(-1) * (design.sparse() ? 1 : n) <= (1 << 18))
    at::parallel_for(0, count, 1, run);
  else
    run(0, count);

  int64_t lines = 0;
  for (const Solution& s : found) lines = std::max(lines, s.history.size(0));
  const auto doubles = at::TensorOptions().dtype(at::kDouble);
  Tensor x = at::empty({count, d}, b.options()), summary = at::empty({count, kNumbers}, doubles),
         history = at::full({count, lines, History::count}, std::numeric_limits<double>::quiet_NaN(), doubles),
         packed = at::empty({count, state_size(design, options.method)}, b.options().dtype(at::kDouble));
  for (int64_t i = 0; i < count; ++i) {
    const Solution& s = found[static_cast<size_t>(i)];
    x.select(0, i).copy_(s.x), summary.select(0, i).copy_(s.summary), packed.select(0, i).copy_(s.state);
    history.select(0, i).slice(0, 0, s.history.size(0)).copy_(s.history);
  }
  return {restored(x, full), restored(summary, full), restored(history, full), restored(packed, full)};
}

RegressionPoint second_derivative(const RegressionPoint& along, const RegressionPoint& at,
                                  const RegressionSettings& settings, std::array<bool, 6> need) {
  static const auto op = handle<RegressionSecond>("torch_rescaled::_regression_double_backward");
  std::vector<c10::SymInt> full = leading_sizes(at);
  const Tensor one = at::ones_symint(full, at.b.options());
  const auto d =
      op.call(maybe(along.A), maybe(along.b), maybe(along.x), maybe(along.row_weight), maybe(along.penalty_weight), one,
              at.A, at.b, at.x, maybe(at.row_weight), maybe(at.penalty_weight), at.x, settings.kind, settings.form,
              need, maybe(at.pattern.crow_indices), maybe(at.pattern.col_indices));
  return {std::get<1>(d), std::get<2>(d), std::get<3>(d), std::get<4>(d), std::get<5>(d)};
}

// A, b, row_weight, penalty_weight | crow_indices, col_indices -> x: dx = -H^-1 d(gradient).
struct Implicit {
  using Settings = RegressionSettings;
  static constexpr size_t kInputs = 4, kOutputs = 1, kAuxiliaries = 2;
  static constexpr bool kTraceable = false, kSavesOutputs = true;
  static const char* name() { return "RescaledSolveBackward"; }
  static RegressionPoint at(const variable_list& in, const Tensor& x) {
    RegressionPoint point{in[0].detach(), in[1].detach(), x.detach(), in[2].defined() ? in[2].detach() : in[2],
                          in[3].defined() ? in[3].detach() : in[3]};
    if (in[4].defined()) point.pattern = {in[4], in[5], x.sym_size(-1)};
    return point;
  }
  static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list& out,
                           const variable_list& grads, const std::vector<bool>& need) {
    TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                                "torch_rescaled::solve_regression: expected one derivative of the solution, got "
                                "create_graph=True; second derivatives of a solution do not exist yet");
    const RegressionPoint point = at(in, out[0]);
    const Tensor adjoint = -inverse_hessian_times(point, settings, grads[0]);
    const RegressionPoint d = second_derivative({{}, {}, adjoint, {}, {}}, point, settings,
                                                {false, need[0], need[1], false, need[2], need[3]});
    return {d.A, d.b, d.row_weight, d.penalty_weight};
  }
  static variable_list jvp(const Settings& settings, const variable_list& in, const variable_list& tangents,
                           const variable_list& out) {
    const RegressionPoint point = at(in, out[0]);
    const RegressionPoint d = second_derivative({tangents[0], tangents[1], {}, tangents[2], tangents[3]}, point,
                                                settings, {false, false, false, true, false, false});
    return {-inverse_hessian_times(point, settings, d.x)};
  }
};

Four solve_autograd(c10::DispatchKeySet keys, SOLVE_POINT, RESCALED_REGRESSION_SETTINGS, SOLVE_OPTIONS) {
  static const auto op = handle<SolveSignature>("torch_rescaled::_solve_regression");
  const variable_list in{
      A, b, defined_or(row_weight), defined_or(penalty_weight), defined_or(crow_indices), defined_or(col_indices)};
  check_differentiable("solve_regression", in, Implicit::kInputs, group.has_value());
  const auto out = record<Implicit>(RESCALED_THE_REGRESSION_SETTINGS, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, A, b, row_weight, penalty_weight, x0, state, kind,
                                 form, method, max_iterations, gtol, ftol, xtol, damping, group, chunk, sampling,
                                 sample_rows, seed, crow_indices, col_indices, n_columns));
  });
  return {out[0], out[1], out[2], out[3]};
}

#define SOLVER_OPTIONS                                                                                               \
  c10::string_view method, int64_t max_iterations, double gtol, std::optional<double> ftol, double xtol,             \
      double damping, std::optional<c10::string_view> group, std::optional<int64_t> chunk, const MaybeTensor &state, \
      c10::string_view sampling, std::optional<int64_t> sample_rows, int64_t seed
#define SOLVER_ARGUMENTS \
  method, max_iterations, gtol, ftol, xtol, damping, group, chunk, state, sampling, sample_rows, seed

Four public_solve(const char* name, RegressionPoint point, const RegressionSettings& settings, SOLVER_OPTIONS) {
  check_regression(name, point, settings);
  point = aligned(point, static_cast<int64_t>(leading_sizes(point).size()));
  const double default_ftol = accumulation_type(point.A) == at::kDouble ? 1e-15 : 1e-8;
  static const auto op = handle<SolveSignature>("torch_rescaled::_solve_regression");
  return op.call(point.A, point.b, maybe(point.row_weight), maybe(point.penalty_weight), maybe(point.x), state,
                 settings.kind, settings.form, method, max_iterations, gtol, ftol.value_or(default_ftol), xtol, damping,
                 group, chunk.value_or(max_iterations + 1), sampling, sample_rows.value_or(0), seed,
                 maybe(point.pattern.crow_indices), maybe(point.pattern.col_indices), point.pattern.n_columns);
}
Four solve_regression(const Tensor& A, const Tensor& b, const MaybeTensor& x0, const MaybeTensor& row_weight,
                      const MaybeTensor& penalty_weight, RESCALED_REGRESSION_SETTINGS, SOLVER_OPTIONS) {
  return public_solve("solve_regression", {A, b, defined_or(x0), defined_or(row_weight), defined_or(penalty_weight)},
                      RESCALED_THE_REGRESSION_SETTINGS, SOLVER_ARGUMENTS);
}
Four solve_regression_csr(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                          c10::SymInt n_columns, const Tensor& b, const MaybeTensor& x0, const MaybeTensor& row_weight,
                          const MaybeTensor& penalty_weight, RESCALED_REGRESSION_SETTINGS, SOLVER_OPTIONS) {
  return public_solve("solve_regression_csr",
                      {values,
                       b,
                       defined_or(x0),
                       defined_or(row_weight),
                       defined_or(penalty_weight),
                       {crow_indices, col_indices, n_columns}},
                      RESCALED_THE_REGRESSION_SETTINGS, SOLVER_ARGUMENTS);
}

Tensor sampled_hessian(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, c10::string_view sampling,
                       int64_t sample_rows, int64_t seed, RESCALED_PATTERN) {
  const char* op = "_regression_sampled_hessian";
  const RegressionPoint point = RESCALED_THE_REGRESSION;
  check_regression_point(op, point, RESCALED_THE_REGRESSION_SETTINGS);
  check_sampling(op, sampling, sample_rows, seed);
  RESCALED_CHECK(VALUE, b.dim() == 1, op, "a single problem, b [n], got ", shape(b));
  return sampled_hessian_at(point, RESCALED_THE_REGRESSION_SETTINGS, {std::string(sampling), sample_rows, seed});
}

Tensor steps_of(const Four& evaluation, double damping) {
  const auto& [log_loss, gradient, hessian, log_scale] = evaluation;
  const std::vector<int64_t> full(gradient.sizes().begin(), gradient.sizes().end() - 1);
  const Tensor g = wide(flattened(gradient, 1, full)), H = wide(flattened(hessian, 2, full));
  const Tensor steps = at::zeros_like(g);
  for (int64_t i = 0; i < g.size(0); ++i)
    if (const Direction found = newton_direction(H[i], g[i], damping); found.step.defined())
      steps.select(0, i).copy_(found.step);
  return restored(steps.to(gradient.options()), full);
}
void check_step(const char* op, double damping, c10::string_view curvature) {
  RESCALED_CHECK(VALUE, damping >= 0, op, "damping >= 0, got ", damping);
  check_curvature(op, curvature, /*with_none=*/false);
}

Tensor newton_step(const Tensor& A, const Tensor& b, const Tensor& x, const MaybeTensor& row_weight,
                   const MaybeTensor& penalty_weight, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature,
                   double damping) {
  using EvaluateSignature =
      Four(const Tensor& A, const Tensor& b, const Tensor& x, const MaybeTensor& row_weight,
           const MaybeTensor& penalty_weight, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature);
  check_step("newton_step", damping, curvature);
  static const auto op = handle<EvaluateSignature>("torch_rescaled::regression_evaluate");
  return steps_of(op.call(A, b, x, row_weight, penalty_weight, kind, form, curvature), damping);
}
Tensor newton_step_csr(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values,
                       c10::SymInt n_columns, const Tensor& b, const Tensor& x, const MaybeTensor& row_weight,
                       const MaybeTensor& penalty_weight, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature,
                       double damping) {
  using EvaluateSignature =
      Four(const Tensor& crow_indices, const Tensor& col_indices, const Tensor& values, c10::SymInt n_columns,
           const Tensor& b, const Tensor& x, const MaybeTensor& row_weight, const MaybeTensor& penalty_weight,
           RESCALED_REGRESSION_SETTINGS, c10::string_view curvature);
  check_step("newton_step_csr", damping, curvature);
  static const auto op = handle<EvaluateSignature>("torch_rescaled::regression_evaluate_csr");
  return steps_of(
      op.call(crow_indices, col_indices, values, n_columns, b, x, row_weight, penalty_weight, kind, form, curvature),
      damping);
}

}  // namespace
}  // namespace torch_rescaled::solvers

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("_solve_regression", TORCH_FN(torch_rescaled::solvers::solve));
  m.impl("_regression_sampled_hessian", TORCH_FN(torch_rescaled::solvers::sampled_hessian));
}
TORCH_LIBRARY_IMPL(torch_rescaled, Autograd, m) {
  m.impl("_solve_regression", TORCH_FN(torch_rescaled::solvers::solve_autograd));
}
TORCH_LIBRARY_IMPL(torch_rescaled, CompositeImplicitAutograd, m) {
  m.impl("solve_regression", TORCH_FN(torch_rescaled::solvers::solve_regression));
  m.impl("solve_regression_csr", TORCH_FN(torch_rescaled::solvers::solve_regression_csr));
  m.impl("newton_step", TORCH_FN(torch_rescaled::solvers::newton_step));
  m.impl("newton_step_csr", TORCH_FN(torch_rescaled::solvers::newton_step_csr));
}
