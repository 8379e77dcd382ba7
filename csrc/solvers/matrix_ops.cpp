// SPDX-License-Identifier: BSD-3-Clause
// solve_matrix_regression as an operator.
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../ops/check.h"
#include "../ops/matrix_regression/checks.h"
#include "map_ops.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

constexpr int64_t kSmallMap = 1 << 16;     // elements of maps that are solved side by side
constexpr int64_t kDirectUnknowns = 1024;  // for which the Hessian is formed

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
  std::vector<int64_t> full;
  for (const c10::SymInt& size : leading_sizes({{A1, 2}, {A2, 2}, {B, 2}, {defined_or(attn_mask), 2}}))
    full.push_back(size.expect_int());
  check_map_options(op, full, d1, d2, THE_MAP_SOLVE_OPTIONS);
  RESCALED_CHECK(VALUE, method == "auto" || method == "cg" || method == "newton", op,
                 "method 'auto', 'cg' or 'newton', got '", method, "'");
  RESCALED_CHECK(VALUE, method != "newton" || !rank, op, "method 'cg' or 'auto' with a rank, got 'newton'");
  const bool direct = method == "newton" || (method == "auto" && !rank && d1 * d2 <= kDirectUnknowns);
  const MapBatch batch(full, sample_dims);
  const auto data = [&](int64_t i) {
    MatrixData one;
    one.A1 = batch.of(A1, 2, i, true, /*expanded=*/true).to(type);
    one.point = {
        {}, batch.of(A2, 2, i, true).to(type), batch.of(B, 2, i, true), batch.of(defined_or(attn_mask), 2, i, true)};
    one.regularization = regularization;
    one.group = Group(std::string(group.value_or("")));
    return one;
  };
  const MapResults found = solve_maps(
      batch, A1.device().is_cpu() && !group && A1.size(-2) * A2.size(-2) * batch.samples() <= kSmallMap,
      A1.options().dtype(type), map_options(type, direct, max_iterations, cg_iterations, gtol, ftol, xtol, damping),
      chunk, defined_or(state), [&](int64_t i) { return std::make_unique<MatrixTask>(data(i), settings, rank); },
      [&](int64_t i) { return X0.has_value() ? batch.of(*X0, 2, i, false) : Tensor(); });
  return {found.X, found.left, found.right, found.summary, found.history, found.state};
}

}  // namespace
}  // namespace torch_rescaled::solvers

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("solve_matrix_regression", TORCH_FN(torch_rescaled::solvers::solve_matrix_regression));
}
