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

std::vector<int64_t> leading(const Tensor& A1, const Tensor& A2, const Tensor& B, const Tensor& mask) {
  std::vector<int64_t> full;
  for (const c10::SymInt& size : leading_sizes({{A1, 2}, {A2, 2}, {B, 2}, {mask, 2}}))
    full.push_back(size.expect_int());
  return full;
}
MatrixData data_of(const MapBatch& batch, int64_t i, const Tensor& A1, const Tensor& A2, const Tensor& B,
                   const MaybeTensor& attn_mask, double regularization, std::optional<c10::string_view> group) {
  const at::ScalarType type = accumulation_type(A1);
  MatrixData one;
  one.A1 = batch.of(A1, 2, i, true, /*expanded=*/true).to(type);
  one.point = {
      {}, batch.of(A2, 2, i, true).to(type), batch.of(B, 2, i, true), batch.of(defined_or(attn_mask), 2, i, true)};
  one.regularization = regularization;
  one.group = Group(std::string(group.value_or("")));
  return one;
}

Six solve_matrix_regression(const Tensor& A1, const Tensor& A2, const Tensor& B, const MaybeTensor& X0,
                            const MaybeTensor& attn_mask, bool is_causal, double regularization, c10::string_view kind,
                            c10::string_view form, MAP_SOLVE_OPTIONS) {
  const char* op = "solve_matrix_regression";
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  const at::ScalarType type = accumulation_type(A1);
  const int64_t d1 = A1.size(-1), d2 = A2.size(-1);
  const Tensor X = X0.has_value() ? *X0 : at::zeros({d1, d2}, A1.options().dtype(type));
  check_matrix_regression(op, {A1, X, A2, B, defined_or(attn_mask)}, settings);
  RESCALED_CHECK(VALUE, regularization >= 0 && std::isfinite(regularization), op, "a finite regularization >= 0, got ",
                 regularization);
  const std::vector<int64_t> full = leading(A1, A2, B, defined_or(attn_mask));
  check_map_options(op, full, d1, d2, THE_MAP_SOLVE_OPTIONS);
  RESCALED_CHECK(VALUE, method == "auto" || method == "cg" || method == "newton", op,
                 "method 'auto', 'cg' or 'newton', got '", method, "'");
  RESCALED_CHECK(VALUE, method != "newton" || !rank, op, "method 'cg' or 'auto' with a rank, got 'newton'");
  const bool direct = method == "newton" || (method == "auto" && !rank && d1 * d2 <= kDirectUnknowns);
  const MapBatch batch(full, sample_dims);
  const MapResults found = solve_maps(
      batch, A1.device().is_cpu() && !group && A1.size(-2) * A2.size(-2) * batch.samples() <= kSmallMap,
      A1.options().dtype(type), map_options(type, direct, max_iterations, cg_iterations, gtol, ftol, xtol, damping),
      chunk, defined_or(state),
      [&](int64_t i) {
        return std::make_unique<MatrixTask>(data_of(batch, i, A1, A2, B, attn_mask, regularization, group), settings,
                                            rank);
      },
      [&](int64_t i) { return X0.has_value() ? batch.of(*X0, 2, i, false) : Tensor(); });
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
    const MapBatch batch(leading(in[0], in[1], in[2], mask), x.sample_dims);
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
      return MatrixTask(data_of(batch, i, in[0], in[1], in[2], maybe(mask), x.regularization, {}),
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

using MatrixSolve = Six(const Tensor& A1, const Tensor& A2, const Tensor& B, const MaybeTensor& X0,
                        const MaybeTensor& attn_mask, bool is_causal, double regularization, c10::string_view kind,
                        c10::string_view form, MAP_SOLVE_OPTIONS);

Six solve_autograd(c10::DispatchKeySet keys, const Tensor& A1, const Tensor& A2, const Tensor& B, const MaybeTensor& X0,
                   const MaybeTensor& attn_mask, bool is_causal, double regularization, c10::string_view kind,
                   c10::string_view form, MAP_SOLVE_OPTIONS) {
  static const auto op = handle<MatrixSolve>("torch_rescaled::solve_matrix_regression");
  const variable_list in{A1, A2, B, defined_or(attn_mask)};
  check_differentiable("solve_matrix_regression", in, MatrixImplicit::kInputs, group.has_value());
  const ImplicitSettings settings{is_causal,        false,      regularization, std::string(kind), std::string(form),
                                  rank.value_or(0), sample_dims};
  const auto out = record<MatrixImplicit>(settings, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, A1, A2, B, X0, attn_mask, is_causal, regularization,
                                 kind, form, THE_MAP_SOLVE_OPTIONS));
  });
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

}  // namespace
}  // namespace torch_rescaled::solvers

TORCH_LIBRARY_IMPL(torch_rescaled, Autograd, m) {
  m.impl("solve_matrix_regression", TORCH_FN(torch_rescaled::solvers::solve_autograd));
}
TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("solve_matrix_regression", TORCH_FN(torch_rescaled::solvers::solve_matrix_regression));
}
