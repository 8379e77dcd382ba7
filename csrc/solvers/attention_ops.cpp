// SPDX-License-Identifier: BSD-3-Clause
// solve_attention_regression as an operator.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>

#include "../ops/check.h"
#include "map_ops.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kSmallMap = 1 << 16;  // elements of maps that are solved side by side

void check(const char* op, const Tensor& A1, const Tensor& A2, const Tensor& A3, const Tensor& B, const Tensor& X0,
           const Tensor& mask, double regularization, c10::string_view kind, c10::string_view form,
           c10::string_view method) {
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
  RESCALED_CHECK(VALUE, method == "auto" || method == "projection" || method == "joint", op,
                 "method 'auto', 'projection' or 'joint', got '", method, "'");
  RESCALED_CHECK(VALUE, regularization >= 0 && std::isfinite(regularization), op, "a finite regularization >= 0, got ",
                 regularization);
}

Seven solve_attention_regression(const Tensor& A1, const Tensor& A2, const Tensor& A3, const Tensor& B,
                                 const MaybeTensor& X0, const MaybeTensor& attn_mask, bool is_causal,
                                 double regularization, c10::string_view kind, c10::string_view form,
                                 MAP_SOLVE_OPTIONS) {
  const char* op = "solve_attention_regression";
  check(op, A1, A2, A3, B, defined_or(X0), defined_or(attn_mask), regularization, kind, form, method);
  const at::ScalarType type = accumulation_type(A1);
  std::vector<int64_t> full;
  for (const c10::SymInt& size : leading_sizes({{A1, 2}, {A2, 2}, {A3, 2}, {B, 2}, {defined_or(attn_mask), 2}}))
    full.push_back(size.expect_int());
  std::vector<c10::SymInt> symbolic(full.begin(), full.end());
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"A1", A1}, {"A2", A2}, {"A3", A3}, {"B", B}})
    check_leading(op, name, t, 2, symbolic);
  check_map_options(op, full, A1.size(-1), A2.size(-1), THE_MAP_SOLVE_OPTIONS);
  const MapBatch batch(full, sample_dims);
  const auto data = [&](int64_t i) {
    AttentionData one;
    one.A1 = batch.of(A1, 2, i, true, /*expanded=*/true).to(type);
    one.A2 = batch.of(A2, 2, i, true, /*expanded=*/true).to(type);
    one.A3 = batch.of(A3, 2, i, true, /*expanded=*/true).to(type);
    one.B = batch.of(B, 2, i, true, /*expanded=*/true).to(type);
    one.mask = batch.of(defined_or(attn_mask), 2, i, true);
    one.is_causal = is_causal, one.joint = method == "joint";
    one.kind = kind == "signed" ? "sinh" : std::string(kind);
    one.form = kind == "signed" ? "signed" : std::string(form);
    one.regularization = regularization;
    one.group = Group(std::string(group.value_or("")));
    return one;
  };
  const MapResults found = solve_maps(
      batch, A1.device().is_cpu() && !group && A1.size(-2) * A2.size(-2) * batch.samples() <= kSmallMap,
      A1.options().dtype(type),
      map_options(type, /*direct=*/false, max_iterations, cg_iterations, gtol, ftol, xtol, damping), chunk,
      defined_or(state), [&](int64_t i) { return std::make_unique<AttentionTask>(data(i), rank); },
      [&](int64_t i) { return X0.has_value() ? batch.of(*X0, 2, i, false) : Tensor(); });
  return {found.X, found.left, found.right, found.Y, found.summary, found.history, found.state};
}

}  // namespace
}  // namespace torch_rescaled::solvers

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("solve_attention_regression", TORCH_FN(torch_rescaled::solvers::solve_attention_regression));
}
