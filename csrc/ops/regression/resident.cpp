// SPDX-License-Identifier: BSD-3-Clause
// The solver's operators as calls, and by plain tensor formulas for devices without kernels of their own.
#include "resident.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/sign.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "checks.h"
#include "design.h"
#include "plain.h"
#include "rows.h"

namespace rescaled::ops {
namespace {

using MatvecSignature = Tensor(const Tensor& A, const Tensor& v, RESCALED_PATTERN);
using StatisticsSignature = Tensor(const Tensor& logits, const MaybeTensor& direction, const MaybeTensor& steps,
                                   RESCALED_TARGET, RESCALED_REGRESSION_SETTINGS);
using RowsSignature = Tensor(const Tensor& logits, const Tensor& statistics, RESCALED_TARGET,
                             RESCALED_REGRESSION_SETTINGS);
using ModelSignature = Tensor(const Tensor& rows, const Tensor& direction);
using CurvatureSignature = Three(const Tensor& A, const Tensor& rows, const Tensor& statistics,
                                 c10::string_view curvature, RESCALED_PATTERN, c10::SymInt n_columns);

Tensor at_column(const Tensor& statistics, int64_t i) { return statistics.select(-1, i).unsqueeze(-1); }
Tensor row(const Tensor& rows, int64_t i) { return rows.select(-2, i); }

Tensor matvec(const Tensor& A, const Tensor& v, RESCALED_PATTERN) {
  const Design design{A, RESCALED_THE_PATTERN(v)};
  check_regression_matvec(design, v);
  return plain_regression_matvec(design, v);
}
Three curvature(const Tensor& A, const Tensor& rows, const Tensor& statistics, c10::string_view name, RESCALED_PATTERN,
                c10::SymInt n_columns) {
  check_curvature("_regression_curvature", name, /*with_none=*/false);
  return plain_regression_curvature({A, pattern_of(crow_indices, col_indices, n_columns)}, rows, statistics, name);
}

}  // namespace

Tensor plain_regression_matvec(const Design& A, const Tensor& v) {
  const at::ScalarType type = accumulation_type(A.A);
  return times_vector({A.A.to(type), A.pattern}, v.to(type));
}

static Tensor statistics_at(const Rows& r, const RegressionSettings& settings) {
  const RowValues v = row_values(r, settings);
  const Tensor b = v.unit * r.b, squares = v.u.square() + b.square();
  Tensor loss = scaled_loss(v), penalty_part = penalty(r);
  // Beyond e^600 the penalty is infinitely larger than the loss either way.
  penalty_part = penalty_part.defined() ? penalty_part * (-2 * v.shift).clamp_max(600).exp() : at::zeros_like(loss);
  Tensor square = settings.form == "plain" ? at::zeros_like(loss)
                  : settings.form == "rescaled"
                      ? (r.row_weight.defined() ? r.row_weight * r.b * r.b : r.b * r.b).sum(-1, true)
                      : (r.row_weight.defined() ? r.row_weight * v.u * v.u : v.u * v.u).sum(-1, true);
  square = square.expand_symint(loss.sym_sizes());  // b may be shared by problems
  const Tensor magnitude = (r.row_weight.defined() ? r.row_weight * squares : squares).sum(-1, true);
  const Tensor total = v.u.sum(-1, true);
  const Tensor largest = r.logits.sym_size(-1) == 0 ? at::zeros_like(loss) : r.logits.abs().amax(-1, true);
  return at::stack(
             {2 * v.shift, loss + penalty_part, penalty_part, v.sum_shift + v.sum.abs().log(), v.sum.sign(), v.unit,
              v.beta, square, magnitude, v.u.abs().sum(-1, true) / total.abs(),
              (r.row_weight.defined() ? r.row_weight * v.u.square() : v.u.square()).sum(-1, true) / total.square(),
              largest},
             -1)
      .squeeze(-2);
}

Tensor plain_regression_statistics(const Tensor& logits, const MaybeTensor& direction, const MaybeTensor& steps,
                                   RESCALED_TARGET, RESCALED_REGRESSION_SETTINGS) {
  const auto wide = [](const MaybeTensor& t) { return t.has_value() ? t->to(at::kDouble).unsqueeze(-2) : Tensor(); };
  Tensor z = logits.to(at::kDouble).unsqueeze(-2);
  if (direction.has_value()) z = z + steps->to(at::kDouble).unsqueeze(-1) * direction->to(at::kDouble).unsqueeze(-2);
  const Tensor statistics =
      statistics_at({z, wide(b), wide(row_weight), wide(penalty_weight)}, RESCALED_THE_REGRESSION_SETTINGS);
  return statistics.contiguous();
}

Tensor plain_regression_rows(const Tensor& logits, const Tensor& statistics, RESCALED_TARGET,
                             RESCALED_REGRESSION_SETTINGS) {
  const RegressionSettings settings = RESCALED_THE_REGRESSION_SETTINGS;
  const bool normalized = form == "normalized";
  const auto wide = [](const MaybeTensor& t) { return t.has_value() ? t->to(at::kDouble) : Tensor(); };
  const Rows r{logits.to(at::kDouble), wide(b), wide(row_weight), wide(penalty_weight)};
  const auto number = [&](int64_t i) { return at_column(statistics, i).to(at::kDouble); };
  const Tensor log_scale = number(RegressionStatistics::log_scale), unit = number(RegressionStatistics::unit),
               beta = number(RegressionStatistics::beta);
  auto [u, du] =
      scaled_phi(r.logits, normalized ? number(RegressionStatistics::log_sum) : log_scale / 2, settings.kind);
  if (normalized) u = u * number(RegressionStatistics::sum_sign), du = du * number(RegressionStatistics::sum_sign);
  const auto weigh = [&](const Tensor& t) { return r.row_weight.defined() ? r.row_weight * t : t; };
  const Tensor zero = at::zeros_like(u), inner = weigh(u - unit * r.b) - beta;
  Tensor gradient = du * inner, diagonal = weigh(du.square()), q = zero, q_rest = zero;
  Tensor noise = du.abs() * (weigh(u.abs() + (unit * r.b).abs()) + beta.abs());
  if (settings.form == "rescaled") q = weigh(du * r.b);
  if (normalized) q = weigh(du * u), q_rest = du * inner;
  if (r.penalty_weight.defined()) {
    const Tensor weight = r.penalty_weight.square() * (-log_scale).clamp_max(600).exp();
    gradient = gradient + weight * r.logits, diagonal = diagonal + weight;
    noise = noise + weight * r.logits.abs();
  }
  return at::stack({gradient, diagonal, u * inner, du, q, q_rest, noise.square()}, -2).to(logits.scalar_type());
}

Tensor plain_regression_model(const Tensor& rows, const Tensor& direction) {
  const Tensor r = rows.to(at::kDouble), t = direction.to(at::kDouble);
  const auto along = [&](int64_t i, const Tensor& with) { return (row(r, i) * with).sum(-1); };
  const Tensor largest = t.sym_size(-1) == 0 ? t.sum(-1) : t.abs().amax(-1);
  return at::stack({along(RegressionRows::gradient, t), along(RegressionRows::diagonal, t.square()),
                    along(RegressionRows::diagonal_rest, t.square()), along(RegressionRows::p, t),
                    along(RegressionRows::q, t), along(RegressionRows::q_rest, t), largest},
                   -1);
}

Three plain_regression_curvature(const Design& A, const Tensor& rows, const Tensor& statistics,
                                 c10::string_view curvature) {
  const at::ScalarType type = accumulation_type(A.A);
  const Design numbers{A.A.to(type), A.pattern};
  Tensor diagonal = row(rows, RegressionRows::diagonal), q = row(rows, RegressionRows::q);
  if (curvature != "gauss_newton") {
    const Tensor rest = row(rows, RegressionRows::diagonal_rest);
    diagonal = diagonal + (curvature == "clipped" ? rest.clamp_min(0) : rest);
    if (curvature == "full") q = q + row(rows, RegressionRows::q_rest);
  }
  const Tensor vectors = at::stack({row(rows, RegressionRows::gradient), row(rows, RegressionRows::p), q}, -2);
  Tensor sides, gram, noise;  // [*, 3, d], [*, d, d], [*, d]
  for_dense_blocks(numbers, [&](const Tensor& a, int64_t first, int64_t count) {
    const auto part = [&](const Tensor& t) { return count < 0 ? t : t.narrow(-1, first, count); };
    sides = plus(sides, at::matmul(part(vectors), a));
    gram = plus(gram, at::matmul(a.mT(), part(diagonal).unsqueeze(-1) * a));
    noise = plus(noise, at::matmul(part(row(rows, RegressionRows::noise)).unsqueeze(-2), a.square()).squeeze(-2));
  });
  const Tensor p = sides.select(-2, 1).unsqueeze(-1), qa = sides.select(-2, 2).unsqueeze(-1);
  const Tensor square = at_column(statistics, RegressionStatistics::square).unsqueeze(-1).to(type);
  const Tensor cross = at::matmul(p, qa.mT());
  return {sides.select(-2, 0).contiguous(), gram - cross - cross.mT() + square * at::matmul(p, p.mT()), noise};
}

Tensor regression_matvec(const Design& A, const Tensor& v) {
  static const auto op = handle<MatvecSignature>("torch_rescaled::_regression_matvec");
  return op.call(A.A, v, maybe(A.pattern.crow_indices), maybe(A.pattern.col_indices));
}
Tensor regression_statistics(const Tensor& logits, const Tensor& direction, const Tensor& steps,
                             const RegressionPoint& x, const RegressionSettings& settings) {
  static const auto op = handle<StatisticsSignature>("torch_rescaled::_regression_statistics");
  return op.call(logits, maybe(direction), maybe(steps), x.b, maybe(x.row_weight), maybe(x.penalty_weight),
                 settings.kind, settings.form);
}
Tensor regression_rows(const Tensor& logits, const Tensor& statistics, const RegressionPoint& x,
                       const RegressionSettings& settings) {
  static const auto op = handle<RowsSignature>("torch_rescaled::_regression_rows");
  return op.call(logits, statistics, x.b, maybe(x.row_weight), maybe(x.penalty_weight), settings.kind, settings.form);
}
ResidentPoint resident_point(const RegressionPoint& x, const RegressionSettings& settings) {
  std::vector<c10::SymInt> sizes = leading_sizes(x);
  sizes.push_back(x.design().rows());
  ResidentPoint at;
  at.logits = regression_matvec(x.design(), x.x).expand_symint(sizes);
  at.statistics = regression_statistics(at.logits, {}, {}, x, settings).squeeze(-2);
  at.rows = regression_rows(at.logits, at.statistics, x, settings);
  return at;
}
Tensor regression_model(const Tensor& rows, const Tensor& direction) {
  static const auto op = handle<ModelSignature>("torch_rescaled::_regression_model");
  return op.call(rows, direction);
}
RegressionCurvature regression_curvature(const Design& A, const Tensor& rows, const Tensor& statistics,
                                         c10::string_view curvature) {
  static const auto op = handle<CurvatureSignature>("torch_rescaled::_regression_curvature");
  auto [gradient, hessian, noise] = op.call(A.A, rows, statistics, curvature, maybe(A.pattern.crow_indices),
                                            maybe(A.pattern.col_indices), A.columns());
  return {gradient, hessian, noise};
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("_regression_matvec", TORCH_FN(rescaled::ops::matvec));
  m.impl("_regression_statistics", TORCH_FN(rescaled::ops::plain_regression_statistics));
  m.impl("_regression_rows", TORCH_FN(rescaled::ops::plain_regression_rows));
  m.impl("_regression_model", TORCH_FN(rescaled::ops::plain_regression_model));
  m.impl("_regression_curvature", TORCH_FN(rescaled::ops::curvature));
}
