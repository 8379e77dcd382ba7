// SPDX-License-Identifier: BSD-3-Clause
// solve_matrix_regression as an operator.
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../ops/check.h"
#include "../ops/matrix_regression/checks.h"
#include "map_implicit.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kSmallMap = 1 << 16;     // elements of maps that are solved side by side
constexpr int64_t kDirectUnknowns = 1024;  // for which the Hessian is formed

MatrixData data_of(const MapBatch& batch, int64_t i, const Tensor& A1, const Tensor& A2, const Tensor& B,
                   const Tensor& mask, double regularization, std::optional<c10::string_view> group) {
  const at::ScalarType type = accumulation_type(A1);
  MatrixData one;
  one.A1 = batch.of(A1, 2, i, true, /*expanded=*/true).to(type);
  one.point = {{}, batch.of(A2, 2, i, true).to(type), batch.of(B, 2, i, true), batch.of(mask, 2, i, true)};
  one.regularization = regularization;
  one.group = Group(std::string(group.value_or("")));
  return one;
}

using MatrixSolve = Six(const Tensor& A1, const Tensor& A2, const Tensor& B, MAP_SOLVE_ARGUMENTS);

Six solve(const Tensor& A1, const Tensor& A2, const Tensor& B, MAP_SOLVE_ARGUMENTS) {
  const at::ScalarType type = accumulation_type(A1);
  const bool direct = method == "newton" || (method == "auto" && !rank && A1.size(-1) * A2.size(-1) <= kDirectUnknowns);
  const MapBatch batch(map_sizes({A1, A2, B, defined_or(mask)}), sample_dims);
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  const MapResults found = solve_maps(
      batch, A1.device().is_cpu() && !group && A1.size(-2) * A2.size(-2) * batch.samples() <= kSmallMap,
      A1.options().dtype(type), {direct, max_iterations, cg_iterations, gtol, ftol, xtol, damping}, chunk,
      defined_or(state),
      [&](int64_t i) {
        return std::make_unique<MatrixTask>(data_of(batch, i, A1, A2, B, defined_or(mask), regularization, group),
                                            settings, rank);
      },
      [&](int64_t i) { return batch.of(defined_or(X0), 2, i, /*sampled=*/false); });
  return {found.X, found.left, found.right, found.summary, found.history, found.state};
}

// A1, A2, B | attn_mask -> X | factors, ...
struct MatrixImplicit {
  using Settings = ImplicitSettings;
  static constexpr size_t kInputs = 3, kOutputs = 1, kAuxiliaries = 1;
  static constexpr bool kTraceable = false, kSavesOutputs = true;
  static const char* name() { return "RescaledSolveMatrixRegressionBackward"; }

  static ImplicitProblem problem(const Settings& x, const variable_list& in, const variable_list& out) {
    const Tensor mask = in[3];
    const MapBatch batch(map_sizes({in[0], in[1], in[2], mask}), x.sample_dims);
    ImplicitProblem p;
    p.inputs = {in[0].detach(), in[1].detach(), in[2].detach()};
    p.unknowns = map_unknowns(out[0], out[1], out[2], x.rank);
    p.problems = batch.problems();
    p.loss = [x, mask](const variable_list& inputs, const variable_list& unknowns) {
      using Loss = Tensor(const Tensor& A1, const Tensor& X, const Tensor& A2, const Tensor& B, const MaybeTensor& mask,
                          bool is_causal, double regularization, c10::string_view kind, c10::string_view form);
      static const auto op = handle<Loss>("torch_rescaled::matrix_regression_loss");
      return op
          .call(inputs[0], over_samples(map_of(unknowns, x.rank), x.sample_dims), inputs[1], inputs[2], maybe(mask),
                x.is_causal, x.regularization, x.kind, x.form)
          .sum();
    };
    p.metric = [x, in, mask, batch](int64_t i, const Tensor& vector) {
      return MatrixTask(data_of(batch, i, in[0], in[1], in[2], mask, x.regularization, {}),
                        {x.is_causal, x.kind, x.form}, x.rank ? std::optional<int64_t>(x.rank) : std::nullopt)
          .metric(vector);
    };
    return p;
  }
  static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list& out,
                           const variable_list& grads, const std::vector<bool>& need) {
    const ImplicitProblem p = problem(settings, in, out);
    return implicit_vjp(p, map_cotangents(p.unknowns, grads[0], settings.rank), need);
  }
  static variable_list jvp(const Settings& settings, const variable_list& in, const variable_list& tangents,
                           const variable_list& out) {
    const ImplicitProblem p = problem(settings, in, out);
    return {map_tangent(p.unknowns, implicit_jvp(p, tangents), settings.rank)};
  }
};

Six solve_autograd(c10::DispatchKeySet keys, const Tensor& A1, const Tensor& A2, const Tensor& B, MAP_SOLVE_ARGUMENTS) {
  static const auto op = handle<MatrixSolve>("torch_rescaled::_solve_matrix_regression");
  const variable_list in{A1, A2, B, defined_or(mask)};
  check_differentiable("solve_matrix_regression", in, MatrixImplicit::kInputs, group.has_value());
  const ImplicitSettings settings{is_causal,        false,      regularization, std::string(kind), std::string(form),
                                  rank.value_or(0), sample_dims};
  const auto out = record<MatrixImplicit>(settings, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, A1, A2, B, THE_MAP_SOLVE));
  });
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

Six solve_matrix_regression(const Tensor& A1, const Tensor& A2, const Tensor& B, MAP_SOLVE_PUBLIC) {
  const char* op = "solve_matrix_regression";
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  const at::ScalarType type = accumulation_type(A1);
  const Tensor X = X0.has_value() ? *X0 : at::zeros({A1.size(-1), A2.size(-1)}, A1.options().dtype(type));
  check_matrix_regression(op, {A1, X, A2, B, defined_or(attn_mask)}, settings);
  const std::vector<int64_t> full = map_sizes({A1, A2, B, defined_or(attn_mask)});
  RESCALED_CHECK(VALUE, method == "auto" || method == "cg" || method == "newton", op,
                 "method 'auto', 'cg' or 'newton', got '", method, "'");
  RESCALED_CHECK(VALUE, method != "newton" || !rank, op, "method 'cg' or 'auto' with a rank, got 'newton'");
  const double tolerance = ftol.value_or(default_ftol(type));
  const int64_t most = chunk.value_or(max_iterations + 1);
  const MaybeTensor mask = maybe(map_aligned(defined_or(attn_mask), full));
  check_map_options(op, full, A1.size(-1), A2.size(-1), X0, mask, state, is_causal, regularization, kind, form, rank,
                    sample_dims, method, max_iterations, cg_iterations, gtol, tolerance, xtol, damping, group, most);
  const std::vector<int64_t> problems(full.begin(), full.end() - sample_dims);
  const MaybeTensor start = maybe(map_aligned(defined_or(X0), problems)),
                    from = maybe(with_rank(defined_or(state), static_cast<int64_t>(problems.size()) + 1));
  static const auto run = handle<MatrixSolve>("torch_rescaled::_solve_matrix_regression");
  return run.call(map_aligned(A1, full), map_aligned(A2, full), map_aligned(B, full), start, mask, from, is_causal,
                  regularization, kind, form, rank, sample_dims, method, max_iterations, cg_iterations, gtol, tolerance,
                  xtol, damping, group, most);
}

}  // namespace
}  // namespace torch_rescaled::solvers

TORCH_LIBRARY_IMPL(torch_rescaled, Autograd, m) {
  m.impl("_solve_matrix_regression", TORCH_FN(torch_rescaled::solvers::solve_autograd));
}
TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("_solve_matrix_regression", TORCH_FN(torch_rescaled::solvers::solve));
}
TORCH_LIBRARY_IMPL(torch_rescaled, CompositeImplicitAutograd, m) {
  m.impl("solve_matrix_regression", TORCH_FN(torch_rescaled::solvers::solve_matrix_regression));
}
// Under vmap the public operator takes apart too; what runs has a batching rule (registered from Python).
TORCH_LIBRARY_IMPL(torch_rescaled, FuncTorchBatched, m) {
  m.impl("solve_matrix_regression", TORCH_FN(torch_rescaled::solvers::solve_matrix_regression));
}
