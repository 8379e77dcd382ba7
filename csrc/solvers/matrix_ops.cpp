// SPDX-License-Identifier: BSD-3-Clause
// solve_matrix_regression as an operator.
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../ops/batch.h"
#include "../ops/check.h"
#include "../ops/matrix_regression/checks.h"
#include "../ops/matrix_regression/primitives.h"
#include "map_implicit.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kSmallMap = 1 << 16;    // elements of maps that are solved side by side
constexpr int64_t kDirectUnknowns = 256;  // for which the Hessian is formed

// What a problem is made of; the target in one of the three ways of ../ops/matrix_regression/problem.h, with a
// teacher's queries and keys in the place of its rows and columns.
struct Matrices {
  Tensor A1, A2, B, mask, target_rows, target_columns, target_values;
  std::string source;

  int64_t suffix() const { return source == "sparse" ? 1 : 2; }
  std::vector<int64_t> sizes() const {
    return concrete(leading_sizes({{A1, 2},
                                   {A2, 2},
                                   {B, 2},
                                   {mask, 2},
                                   {target_rows, suffix()},
                                   {target_columns, suffix()},
                                   {target_values, suffix()}}));
  }
  MatrixData data(const MapBatch& batch, int64_t i, bool is_causal, double regularization,
                  std::optional<c10::string_view> group) const {
    const at::ScalarType type = accumulation_type(A1);
    const auto of = [&](const Tensor& t, int64_t behind) { return batch.of(t, behind, i, /*sampled=*/true); };
    MatrixData one;
    one.A1 = batch.of(A1, 2, i, /*sampled=*/true, /*expanded=*/true).to(type);
    one.point = {{}, of(A2, 2).to(type), of(B, 2), of(mask, 2)};
    one.point.target_rows = of(target_rows, suffix()), one.point.target_columns = of(target_columns, suffix());
    one.point.target_values = of(target_values, suffix());
    if (has_teacher({false, "", "", source})) {
      MatrixPoint& p = one.point;
      p.target_rows = p.target_rows.to(type), p.target_columns = p.target_columns.to(type);
      p.target_values = matrix_statistics({p.target_rows, p.target_columns, {}, p.mask},
                                          {is_causal, source, /*form=*/"rescaled", /*source=*/"zero"});
    }
    one.regularization = regularization;
    one.group = Group(std::string(group.value_or("")));
    return one;
  }
};

#define MATRICES                                                                            \
  const Tensor &A1, const Tensor &A2, const MaybeTensor &B, const MaybeTensor &target_rows, \
      const MaybeTensor &target_columns, const MaybeTensor &target_values
#define THE_MATRICES                                                                              \
  Matrices {                                                                                      \
    A1, A2, defined_or(B), defined_or(mask), defined_or(target_rows), defined_or(target_columns), \
        defined_or(target_values), std::string(source)                                            \
  }
using MatrixSolve = Six(MATRICES, MAP_SOLVE_ARGUMENTS, c10::string_view source);

Six solve(MATRICES, MAP_SOLVE_ARGUMENTS, c10::string_view source) {
  const at::ScalarType type = accumulation_type(A1);
  const Matrices given = THE_MATRICES;
  const MapBatch batch(given.sizes(), sample_dims);
  const MatrixSettings settings{is_causal, std::string(kind), std::string(form), given.source};
  const MapResults found = solve_maps(
      batch, A1.device().is_cpu() && !group && A1.size(-2) * A2.size(-2) * batch.samples() <= kSmallMap,
      A1.options().dtype(type),
      {method == "newton", method == "lbfgs", max_iterations, cg_iterations, gtol, ftol, xtol, damping}, chunk,
      defined_or(state),
      [&](int64_t i) {
        return std::make_unique<MatrixTask>(given.data(batch, i, is_causal, regularization, group), settings, rank);
      },
      [&](int64_t i) { return batch.of(defined_or(X0), 2, i, /*sampled=*/false); });
  return {found.X, found.left, found.right, found.summary, found.history, found.state};
}

// A1, A2, B | mask, the target's other parts -> X | factors, ...
struct MatrixImplicit {
  using Settings = ImplicitSettings;
  static constexpr size_t kInputs = 3, kOutputs = 1, kAuxiliaries = 4;
  static constexpr bool kTraceable = false, kSavesOutputs = true;
  static const char* name() { return "RescaledSolveMatrixRegressionBackward"; }

  static ImplicitProblem problem(const Settings& x, const variable_list& in, const variable_list& out) {
    const Matrices given{in[0], in[1], in[2], in[3], in[4], in[5], in[6], x.source};
    const MapBatch batch(given.sizes(), x.sample_dims);
    ImplicitProblem p;
    for (size_t i = 0; i < kInputs; ++i) p.inputs.push_back(in[i].defined() ? in[i].detach() : in[i]);
    p.unknowns = map_unknowns(out[0], out[1], out[2], x.rank);
    p.problems = batch.problems();
    p.loss = [x, given](const variable_list& inputs, const variable_list& unknowns) {
      using Loss =
          Tensor(const Tensor& A1, const Tensor& X, const Tensor& A2, const MaybeTensor& B, const MaybeTensor& mask,
                 bool is_causal, double regularization, c10::string_view kind, c10::string_view form,
                 const MaybeTensor& teacher_query, const MaybeTensor& teacher_key, c10::string_view teacher_kind,
                 const MaybeTensor& crow_indices, const MaybeTensor& col_indices, const MaybeTensor& values);
      static const auto op = handle<Loss>("torch_rescaled::matrix_regression_loss");
      const bool sparse = x.source == "sparse";
      const MaybeTensor rows = maybe(given.target_rows), columns = maybe(given.target_columns), none;
      return op
          .call(inputs[0], over_samples(map_of(unknowns, x.rank), x.sample_dims), inputs[1], maybe(inputs[2]),
                maybe(given.mask), x.is_causal, x.regularization, x.kind, x.form, sparse ? none : rows,
                sparse ? none : columns, sparse || x.source == "dense" ? "exp" : x.source, sparse ? rows : none,
                sparse ? columns : none, maybe(given.target_values))
          .sum();
    };
    p.metric = [x, given, batch](int64_t i, const Tensor& vector) {
      return MatrixTask(given.data(batch, i, x.is_causal, x.regularization, {}),
                        {x.is_causal, x.kind, x.form, x.source}, x.rank ? std::optional<int64_t>(x.rank) : std::nullopt)
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

Six solve_autograd(c10::DispatchKeySet keys, MATRICES, MAP_SOLVE_ARGUMENTS, c10::string_view source) {
  static const auto op = handle<MatrixSolve>("torch_rescaled::_solve_matrix_regression");
  const Matrices given = THE_MATRICES;
  const variable_list in{A1, A2, given.B, given.mask, given.target_rows, given.target_columns, given.target_values};
  check_differentiable("solve_matrix_regression", in, MatrixImplicit::kInputs, group.has_value());
  const ImplicitSettings settings{is_causal,        false,       regularization, std::string(kind), std::string(form),
                                  rank.value_or(0), sample_dims, given.source};
  const auto out = record<MatrixImplicit>(settings, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, A1, A2, B, target_rows, target_columns,
                                 target_values, THE_MAP_SOLVE, source));
  });
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

Six solve_matrix_regression(const Tensor& A1, const Tensor& A2, const MaybeTensor& B, MAP_SOLVE_PUBLIC,
                            const MaybeTensor& teacher_query, const MaybeTensor& teacher_key,
                            c10::string_view teacher_kind, const MaybeTensor& crow_indices,
                            const MaybeTensor& col_indices, const MaybeTensor& values) {
  const char* op = "solve_matrix_regression";
  const at::ScalarType type = accumulation_type(A1);
  const Tensor X = X0.has_value() ? over_samples(*X0, X0->dim() > 2 ? sample_dims : 0)
                                  : at::zeros({A1.size(-1), A2.size(-1)}, A1.options().dtype(type));
  const MatrixSettings settings = check_matrix_regression(
      op,
      {A1, X, A2, defined_or(B), defined_or(attn_mask), defined_or(teacher_query), defined_or(teacher_key),
       defined_or(crow_indices), defined_or(col_indices), defined_or(values)},
      {is_causal, std::string(kind), std::string(form)}, teacher_kind);
  const bool sparse = settings.source == "sparse";
  const Matrices given{A1,
                       A2,
                       defined_or(B),
                       defined_or(attn_mask),
                       defined_or(sparse ? crow_indices : teacher_query),
                       defined_or(sparse ? col_indices : teacher_key),
                       defined_or(values),
                       settings.source};
  const std::vector<int64_t> full = given.sizes();
  RESCALED_CHECK(VALUE, method == "auto" || method == "cg" || method == "newton" || method == "lbfgs", op,
                 "method 'auto', 'cg', 'newton' or 'lbfgs', got '", method, "'");
  RESCALED_CHECK(VALUE, method != "newton" || !rank, op, "method 'cg', 'lbfgs' or 'auto' with a rank, got 'newton'");
  const double tolerance = ftol.value_or(default_ftol(type));
  // Of the plain form, whose curvature goes with the map, Newton's steps are as fast.
  const bool few = !rank && A1.size(-1) * A2.size(-1) <= kDirectUnknowns;
  const c10::string_view chosen = method != "auto" ? method : few ? "newton" : form == "plain" ? "cg" : "lbfgs";
  const int64_t limit = max_iterations.value_or(default_iterations(chosen)), most = chunk.value_or(limit + 1);
  const auto aligned = [&](const Tensor& t, int64_t suffix) {
    return with_rank(t, static_cast<int64_t>(full.size()) + suffix);
  };
  const MaybeTensor mask = maybe(aligned(given.mask, 2));
  check_map_options(op, full, A1.size(-1), A2.size(-1), X0, mask, state, is_causal, regularization, kind, form, rank,
                    sample_dims, chosen, limit, cg_iterations, gtol, tolerance, xtol, damping, group, most);
  static const auto run = handle<MatrixSolve>("torch_rescaled::_solve_matrix_regression");
  const int64_t problems = static_cast<int64_t>(full.size()) - sample_dims, suffix = given.suffix();
  return run.call(aligned(A1, 2), aligned(A2, 2), maybe(aligned(given.B, 2)), maybe(aligned(given.target_rows, suffix)),
                  maybe(aligned(given.target_columns, suffix)), maybe(aligned(given.target_values, suffix)),
                  maybe(with_rank(defined_or(X0), problems + 2)), mask,
                  maybe(with_rank(defined_or(state), problems + 1)), is_causal, regularization, kind, form, rank,
                  sample_dims, chosen, limit, cg_iterations, gtol, tolerance, xtol, damping, group, most,
                  settings.source);
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
