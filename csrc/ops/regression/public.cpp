// SPDX-License-Identifier: BSD-3-Clause
// The public regression operators: arguments to the primitives' contract by views.
#include "public.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/log.h>
#include <ATen/ops/ones_like.h>
#include <torch/library.h>

#include "../in_float.h"
#include "checks.h"
#include "csr.h"
#include "primitives.h"
#include "resident.h"

namespace rescaled::ops {
namespace {

// Columns up to which Gauss-Newton's Hessian comes with the gradient's read of A: 1.1 to 2.4 times as fast as two
// reads there (measured), no faster at 1024, where its triangle fits no cache.
constexpr int64_t kOneReadColumns = 512;

int64_t leading_rank(const RegressionPoint& x) { return static_cast<int64_t>(leading_sizes(x).size()); }

}  // namespace

Tensor public_loss(const char* op, const RegressionPoint& point, const RegressionSettings& settings) {
  check_regression(op, point, settings);
  return std::get<0>(regression_forward(aligned(point, leading_rank(point)), settings));
}

Four public_evaluate(const char* op, const RegressionPoint& given, const RegressionSettings& settings,
                     c10::string_view curvature) {
  using Statistics = RegressionStatistics;
  check_regression(op, given, settings);
  check_curvature(op, curvature, /*with_none=*/true);
  const RegressionPoint point = aligned(given, leading_rank(given));
  const c10::SymInt columns = point.design().columns();
  const at::ScalarType type = accumulation_type(point.A);
  Tensor statistics, gradient, hessian;
  if (curvature == "none") {
    std::tie(statistics, gradient) = regression_evaluate(point, settings);
    std::vector<c10::SymInt> sizes = leading_sizes(point);
    sizes.insert(sizes.end(), 2, 0);
    hessian = at::empty_symint(sizes, point.b.options());
  } else if (curvature == "gauss_newton" && !point.penalty_weight.defined() && columns <= kOneReadColumns) {
    std::tie(statistics, gradient, hessian) = regression_gauss_newton(point, settings);
  } else {
    // Two reads and one Gram: the full and the clipped Hessian need the row sum before they weigh a row (three Grams in
    // one read take longer wherever a Gram costs more than half a read), and so does a penalty beside a division by it.
    const ResidentPoint at = resident_point(point, settings);
    const RegressionCurvature found = regression_curvature(point.design(), at.rows, at.statistics, curvature);
    statistics = at.statistics;
    gradient = found.gradient, hessian = found.hessian;
  }
  const Tensor log_scale = statistics.select(-1, Statistics::log_scale);
  const Tensor log_loss = statistics.select(-1, Statistics::loss).log() + log_scale;
  return {log_loss.to(type), gradient.to(type), hessian, log_scale.to(type)};
}

Tensor public_hvp(const char* op, const RegressionPoint& point, const Tensor& v, const RegressionSettings& settings,
                  c10::string_view curvature) {
  check_regression(op, point, settings);
  check_direction(op, point, v);
  check_curvature(op, curvature, /*with_none=*/false);
  const int64_t leading = std::max(leading_rank(point), v.dim() - 1);
  return regression_product(aligned(point, leading), with_rank(v, leading + 1), settings, curvature);
}

namespace {

using LossSignature = Tensor(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS);
using EvaluateSignature = Four(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature);
using HvpSignature = Tensor(const Tensor& A, const Tensor& b, const Tensor& x, const Tensor& v,
                            const MaybeTensor& row_weight, const MaybeTensor& penalty_weight,
                            RESCALED_REGRESSION_SETTINGS, c10::string_view curvature);

RegressionPoint dense(RESCALED_REGRESSION) { return {A, b, x, defined_or(row_weight), defined_or(penalty_weight)}; }

Tensor regression_loss(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS) {
  return public_loss("regression_loss", dense(A, b, x, row_weight, penalty_weight), RESCALED_THE_REGRESSION_SETTINGS);
}
Four regression_evaluate_public(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature) {
  return public_evaluate("regression_evaluate", dense(A, b, x, row_weight, penalty_weight),
                         RESCALED_THE_REGRESSION_SETTINGS, curvature);
}
Tensor regression_hvp(const Tensor& A, const Tensor& b, const Tensor& x, const Tensor& v, const MaybeTensor& row_weight,
                      const MaybeTensor& penalty_weight, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature) {
  return public_hvp("regression_hvp", dense(A, b, x, row_weight, penalty_weight), v, RESCALED_THE_REGRESSION_SETTINGS,
                    curvature);
}

void regression_check(const Tensor& A, RESCALED_TARGET, RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN,
                      c10::SymInt n_columns) {
  const Pattern pattern = pattern_of(crow_indices, col_indices, n_columns);
  check_regression("Regression", {A, b, {}, defined_or(row_weight), defined_or(penalty_weight), pattern},
                   RESCALED_THE_REGRESSION_SETTINGS);
  if (pattern.sparse()) check_indices("Regression", {A, pattern});
}

// A is read as it is: autocast must not round it either.
template <c10::DispatchKey kKey>
Tensor loss_autocast(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS) {
  const InFloat<kKey> cast;
  return handle<LossSignature>("torch_rescaled::regression_loss")
      .call(A, cast(b), cast(x), cast(row_weight), cast(penalty_weight), kind, form);
}
template <c10::DispatchKey kKey>
Four evaluate_autocast(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature) {
  const InFloat<kKey> cast;
  return handle<EvaluateSignature>("torch_rescaled::regression_evaluate")
      .call(A, cast(b), cast(x), cast(row_weight), cast(penalty_weight), kind, form, curvature);
}
template <c10::DispatchKey kKey>
Tensor hvp_autocast(const Tensor& A, const Tensor& b, const Tensor& x, const Tensor& v, const MaybeTensor& row_weight,
                    const MaybeTensor& penalty_weight, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature) {
  const InFloat<kKey> cast;
  return handle<HvpSignature>("torch_rescaled::regression_hvp")
      .call(A, cast(b), cast(x), cast(v), cast(row_weight), cast(penalty_weight), kind, form, curvature);
}

template <c10::DispatchKey kKey>
void register_autocast(torch::Library& m) {
  m.impl("regression_loss", TORCH_FN(loss_autocast<kKey>));
  m.impl("regression_evaluate", TORCH_FN(evaluate_autocast<kKey>));
  m.impl("regression_hvp", TORCH_FN(hvp_autocast<kKey>));
}
void register_public(torch::Library& m) {
  m.impl("regression_loss", TORCH_FN(regression_loss));
  m.impl("regression_evaluate", TORCH_FN(regression_evaluate_public));
  m.impl("regression_hvp", TORCH_FN(regression_hvp));
  m.impl("_regression_check", TORCH_FN(regression_check));
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeImplicitAutograd, m) { rescaled::ops::register_public(m); }
// Under vmap the public operators take apart too; the primitives have a batching rule (registered from Python).
TORCH_LIBRARY_IMPL(torch_rescaled, FuncTorchBatched, m) { rescaled::ops::register_public(m); }
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCPU, m) {
  rescaled::ops::register_autocast<c10::DispatchKey::AutocastCPU>(m);
}
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCUDA, m) {
  rescaled::ops::register_autocast<c10::DispatchKey::AutocastCUDA>(m);
}
