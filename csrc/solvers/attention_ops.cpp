// SPDX-License-Identifier: BSD-3-Clause
// solve_attention_regression as an operator.
#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <algorithm>
#include <cmath>

#include "../ops/batch.h"
#include "../ops/check.h"
#include "map_implicit.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kSmallMap = 1 << 16;  // elements of maps that are solved side by side

bool is_lbfgs(c10::string_view method) { return method == "lbfgs" || method == "lbfgs_joint"; }
// Passes over the map are what products cost, and gradients cost fewer; all processes of a group choose alike.
c10::string_view choice(const Tensor& A1, const Tensor& A2, const Tensor& B, int64_t samples, bool grouped) {
  const int64_t rows = grouped ? 1 : samples * A1.size(-2);
  return keeps_jacobians(rows, A2.size(-2), A2.size(-1), B.size(-1)) ? "projection" : "lbfgs";
}
bool is_joint(c10::string_view method) { return method == "joint" || method == "lbfgs_joint"; }

void check(const char* op, const Tensor& A1, const Tensor& A2, const Tensor& A3, const Tensor& B, const Tensor& X0,
           const Tensor& mask, c10::string_view kind, c10::string_view form, c10::string_view method) {
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"A1", A1}, {"A2", A2}, {"A3", A3}, {"B", B}, {"X0", X0}}) {
    if (!t.defined()) continue;
    check_has_kernels(op, name, t), check_device(op, name, t, "A1", A1);
    RESCALED_CHECK(VALUE, t.dim() >= 2, op, name, " of at least 2 dimensions, got ", shape(t));
    RESCALED_CHECK(TYPE, floating(t.scalar_type()), op, name, " of a floating dtype, got ", t.scalar_type());
  }
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"A2", A2}, {"A3", A3}, {"B", B}})
    RESCALED_CHECK(TYPE, t.scalar_type() == A1.scalar_type(), op, name, " of A1's dtype ", A1.scalar_type(), ", got ",
                   t.scalar_type());
  RESCALED_CHECK(VALUE, A3.size(-2) == A2.size(-2), op, "A3 with as many rows as A2, ", A2.size(-2), ", got ",
                 shape(A3));
  RESCALED_CHECK(VALUE, B.size(-2) == A1.size(-2), op, "B with as many rows as A1, ", A1.size(-2), ", got ", shape(B));
  RESCALED_CHECK(VALUE, B.size(-1) > 0, op, "B with columns, got ", shape(B));
  if (X0.defined())
    RESCALED_CHECK(VALUE, X0.size(-2) == A1.size(-1) && X0.size(-1) == A2.size(-1), op,
                   "X0 of shape [*, columns of A1, columns of A2] = [*, ", A1.size(-1), ", ", A2.size(-1), "], got ",
                   shape(X0));
  if (mask.defined()) {
    RESCALED_CHECK(TYPE, mask.scalar_type() == at::kBool, op, "attn_mask of dtype Bool (true: takes part), got ",
                   mask.scalar_type());
    const bool fits = mask.dim() >= 2 && (mask.size(-2) == 1 || mask.size(-2) == A1.size(-2)) &&
                      (mask.size(-1) == 1 || mask.size(-1) == A2.size(-2));
    RESCALED_CHECK(VALUE, fits, op, "attn_mask broadcastable to [*, ", A1.size(-2), ", ", A2.size(-2), "], got ",
                   shape(mask));
  }
  RESCALED_CHECK(VALUE, kind == "exp" || kind == "cosh" || kind == "sinh" || kind == "signed", op,
                 "kind 'exp', 'cosh', 'sinh' or 'signed', got '", kind, "'");
  RESCALED_CHECK(VALUE, form == "normalized" || (form == "rescaled" && kind != "signed"), op,
                 "form 'normalized', or 'rescaled' with a kind other than 'signed', got '", form, "'");
  RESCALED_CHECK(VALUE, method == "auto" || method == "projection" || method == "joint" || is_lbfgs(method), op,
                 "method 'auto', 'projection', 'joint', 'lbfgs' or 'lbfgs_joint', got '", method, "'");
}

std::vector<int64_t> leading(const Tensor& A1, const Tensor& A2, const Tensor& A3, const Tensor& B,
                             const Tensor& mask) {
  return concrete(leading_sizes({{A1, 2}, {A2, 2}, {A3, 2}, {B, 2}, {mask, 2}}));
}

AttentionData data_of(const MapBatch& batch, int64_t i, const Tensor& A1, const Tensor& A2, const Tensor& A3,
                      const Tensor& B, const Tensor& mask, const ImplicitSettings& x,
                      std::optional<c10::string_view> group) {
  const at::ScalarType type = accumulation_type(A1);
  AttentionData one;
  one.A1 = batch.of(A1, 2, i, true, /*expanded=*/true).to(type);
  one.A2 = batch.of(A2, 2, i, true, /*expanded=*/true).to(type);
  one.A3 = batch.of(A3, 2, i, true, /*expanded=*/true).to(type);
  one.B = batch.of(B, 2, i, true, /*expanded=*/true).to(type);
  one.mask = batch.of(mask, 2, i, true);
  one.is_causal = x.is_causal, one.joint = x.joint, one.regularization = x.regularization;
  one.kind = x.kind == "signed" ? "sinh" : x.kind;
  one.form = x.kind == "signed" ? "signed" : x.form;
  one.group = Group(std::string(group.value_or("")));
  return one;
}

using AttentionSolve = Seven(const Tensor& A1, const Tensor& A2, const Tensor& A3, const Tensor& B,
                             MAP_SOLVE_ARGUMENTS);

Seven solve(const Tensor& A1, const Tensor& A2, const Tensor& A3, const Tensor& B, MAP_SOLVE_ARGUMENTS) {
  const MapBatch batch(leading(A1, A2, A3, B, defined_or(mask)), sample_dims);
  const ImplicitSettings settings{is_causal, is_joint(method), regularization, std::string(kind), std::string(form)};
  const MapResults found = solve_maps(
      batch, A1.device().is_cpu() && !group && A1.size(-2) * A2.size(-2) * batch.samples() <= kSmallMap,
      A1.options().dtype(accumulation_type(A1)),
      {/*direct=*/false, is_lbfgs(method), max_iterations, cg_iterations, gtol, ftol, xtol, damping}, chunk,
      defined_or(state),
      [&](int64_t i) {
        return std::make_unique<AttentionTask>(data_of(batch, i, A1, A2, A3, B, defined_or(mask), settings, group),
                                               rank);
      },
      [&](int64_t i) { return batch.of(defined_or(X0), 2, i, /*sampled=*/false); });
  return {found.X, found.Y, found.left, found.right, found.summary, found.history, found.state};
}

// The loss by public operators: W of signed attention, else the attention loss, and the penalty.
Tensor loss_of(const ImplicitSettings& x, const Tensor& mask, const variable_list& in, const Tensor& X,
               const Tensor& Y) {
  using Loss = Tensor(const Tensor& query, const Tensor& key, const Tensor& value, const Tensor& target,
                      const MaybeTensor& attn_mask, bool is_causal, std::optional<double> scale, bool enable_gqa,
                      c10::string_view kind, c10::string_view form, const MaybeTensor& log_row_scale,
                      c10::string_view reduction, bool log);
  static const auto op = handle<Loss>("torch_rescaled::attention_loss");
  const at::ScalarType type = accumulation_type(in[0]);
  const Tensor A1 = in[0].to(type), A2 = in[1].to(type), query = at::matmul(A1, X),
               value = at::matmul(in[2].to(type), Y);
  // A row without keys has loss 0 here.
  Tensor target = in[3].to(type);
  if (mask.defined()) target = target * mask.any(-1, /*keepdim=*/true);
  Tensor loss = op.call(query, A2, value, target, maybe(mask), x.is_causal, 1., false, x.kind, x.form, std::nullopt,
                        "sum", false);
  if (x.regularization != 0) {
    const Tensor inside = at::matmul(at::matmul(A1.mT(), A1), at::matmul(X, at::matmul(A2.mT(), A2)));
    loss = loss + .5 * x.regularization * (X * inside).sum();
  }
  return loss;
}

// A1, A2, A3, B | attn_mask -> X, Y | factors, ...
struct AttentionImplicit {
  using Settings = ImplicitSettings;
  static constexpr size_t kInputs = 4, kOutputs = 2, kAuxiliaries = 1;
  static constexpr bool kTraceable = false, kSavesOutputs = true;
  static const char* name() { return "RescaledSolveAttentionRegressionBackward"; }

  static ImplicitProblem problem(const Settings& x, const variable_list& in, const variable_list& out) {
    const Tensor mask = in[4];
    const MapBatch batch(leading(in[0], in[1], in[2], in[3], mask), x.sample_dims);
    ImplicitProblem p;
    p.inputs = {in[0].detach(), in[1].detach(), in[2].detach(), in[3].detach()};
    p.unknowns = map_unknowns(out[0], out[2], out[3], x.rank);
    p.unknowns.push_back(out[1].detach());
    p.problems = batch.problems();
    p.loss = [x, mask](const variable_list& inputs, const variable_list& unknowns) {
      return loss_of(x, mask, inputs, over_samples(map_of(unknowns, x.rank), x.sample_dims),
                     over_samples(unknowns.back(), x.sample_dims));
    };
    Settings joint = x;
    joint.joint = true;  // the solution's Hessian is X's and Y's
    p.metric = [joint, in, mask, batch](int64_t i, const Tensor& vector) {
      return AttentionTask(data_of(batch, i, in[0], in[1], in[2], in[3], mask, joint, {}),
                           joint.rank ? std::optional<int64_t>(joint.rank) : std::nullopt)
          .metric(vector);
    };
    return p;
  }
  static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list& out,
                           const variable_list& grads, const std::vector<bool>& need) {
    const ImplicitProblem p = problem(settings, in, out);
    variable_list v = map_cotangents(p.unknowns, grads[0], settings.rank);
    v.push_back(grads[1].defined() ? grads[1] : at::zeros_like(p.unknowns.back()));
    return implicit_vjp(p, v, need);
  }
  static variable_list jvp(const Settings& settings, const variable_list& in, const variable_list& tangents,
                           const variable_list& out) {
    const ImplicitProblem p = problem(settings, in, out);
    const variable_list t = implicit_jvp(p, tangents);
    return {map_tangent(p.unknowns, t, settings.rank), t.back()};
  }
};

Seven solve_autograd(c10::DispatchKeySet keys, const Tensor& A1, const Tensor& A2, const Tensor& A3, const Tensor& B,
                     MAP_SOLVE_ARGUMENTS) {
  static const auto op = handle<AttentionSolve>("torch_rescaled::_solve_attention_regression");
  const variable_list in{A1, A2, A3, B, defined_or(mask)};
  check_differentiable("solve_attention_regression", in, AttentionImplicit::kInputs, group.has_value());
  const ImplicitSettings settings{is_causal,         is_joint(method), regularization, std::string(kind),
                                  std::string(form), rank.value_or(0), sample_dims};
  const auto out = record<AttentionImplicit>(settings, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, A1, A2, A3, B, THE_MAP_SOLVE));
  });
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

Seven solve_attention_regression(const Tensor& A1, const Tensor& A2, const Tensor& A3, const Tensor& B,
                                 MAP_SOLVE_PUBLIC) {
  const char* op = "solve_attention_regression";
  check(op, A1, A2, A3, B, defined_or(X0), defined_or(attn_mask), kind, form, method);
  const std::vector<int64_t> full = leading(A1, A2, A3, B, defined_or(attn_mask));
  const std::vector<c10::SymInt> sizes(full.begin(), full.end());
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"A1", A1}, {"A2", A2}, {"A3", A3}, {"B", B}})
    check_leading(op, name, t, 2, sizes);
  const auto aligned = [&](const Tensor& t) { return with_rank(t, static_cast<int64_t>(full.size()) + 2); };
  const double tolerance = ftol.value_or(default_ftol(accumulation_type(A1)));
  int64_t samples = 1;
  for (size_t i = full.size() - static_cast<size_t>(std::clamp<int64_t>(sample_dims, 0, full.size())); i < full.size();
       ++i)
    samples *= full[i];
  const c10::string_view chosen = method == "auto" ? choice(A1, A2, B, samples, group.has_value()) : method;
  const int64_t limit = max_iterations.value_or(default_iterations(chosen)), most = chunk.value_or(limit + 1);
  const MaybeTensor mask = maybe(aligned(defined_or(attn_mask)));
  check_map_options(op, full, A1.size(-1), A2.size(-1), X0, mask, state, is_causal, regularization, kind, form, rank,
                    sample_dims, chosen, limit, cg_iterations, gtol, tolerance, xtol, damping, group, most);
  const std::vector<int64_t> problems(full.begin(), full.end() - sample_dims);
  if (X0.has_value()) check_leading(op, "X0", *X0, 2, {problems.begin(), problems.end()});
  const MaybeTensor start = maybe(with_rank(defined_or(X0), static_cast<int64_t>(problems.size()) + 2)),
                    from = maybe(with_rank(defined_or(state), static_cast<int64_t>(problems.size()) + 1));
  static const auto run = handle<AttentionSolve>("torch_rescaled::_solve_attention_regression");
  return run.call(aligned(A1), aligned(A2), aligned(A3), aligned(B), start, mask, from, is_causal, regularization, kind,
                  form, rank, sample_dims, chosen, limit, cg_iterations, gtol, tolerance, xtol, damping, group, most);
}

}  // namespace
}  // namespace torch_rescaled::solvers

TORCH_LIBRARY_IMPL(torch_rescaled, Autograd, m) {
  m.impl("_solve_attention_regression", TORCH_FN(torch_rescaled::solvers::solve_autograd));
}
TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("_solve_attention_regression", TORCH_FN(torch_rescaled::solvers::solve));
}
TORCH_LIBRARY_IMPL(torch_rescaled, CompositeImplicitAutograd, m) {
  m.impl("solve_attention_regression", TORCH_FN(torch_rescaled::solvers::solve_attention_regression));
}
// Under vmap the public operator takes apart too; what runs has a batching rule (registered from Python).
TORCH_LIBRARY_IMPL(torch_rescaled, FuncTorchBatched, m) {
  m.impl("solve_attention_regression", TORCH_FN(torch_rescaled::solvers::solve_attention_regression));
}
