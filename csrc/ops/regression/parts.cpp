// SPDX-License-Identifier: BSD-3-Clause
// Parts of a problem's rows: as calls, by plain tensor formulas for devices without kernels for them, and joined.
#include "parts.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/full_like.h>
#include <ATen/ops/log.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include "checks.h"
#include "plain.h"
#include "rows.h"

namespace rescaled::ops {
namespace {

using Part = RegressionPart;
using PartSignature = Tensor(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN);
using StatisticsSignature = Tensor(const Tensor& logits, const MaybeTensor& direction, const MaybeTensor& steps,
                                   RESCALED_TARGET, RESCALED_REGRESSION_SETTINGS);
using GramSignature = std::tuple<Tensor, Tensor>(const Tensor& A, const Tensor& rows, c10::string_view curvature,
                                                 RESCALED_PATTERN, c10::SymInt n_columns);

Tensor weigh(const Tensor& weight, const Tensor& t) { return weight.defined() ? weight * t : t; }

// Numbers [*, Part::count] of rows [*, n] in float64, and the coefficients [*, Part::vectors, n] of the vectors.
struct PlainPart {
  Tensor numbers, coefficients;
  PlainPart(const Rows& r, const RegressionSettings& settings) {
    const Tensor &z = r.logits, sizes = z.abs();
    const bool empty = z.sym_size(-1) == 0, plain = settings.form == "plain";
    const auto most = [&](const Tensor& t) { return empty ? row_sum(t) : t.amax(-1, /*keepdim=*/true); };
    Tensor top = most(settings.kind == "exp" ? z : sizes);
    if (plain && !empty) top = at::maximum(top, most(r.b.abs()).log());
    top = (top * kLog2e).ceil();
    const Tensor exponent = at::where(top.isfinite(), top, 0);
    const auto [u, du] = scaled_phi(z, exponent * kLn2, settings.kind);
    const Tensor wb = weigh(r.row_weight, r.b), square_b = row_dot(wb, r.b).expand_symint(exponent.sym_sizes());
    Tensor center;
    if (plain) {
      center = at::exp2(-exponent).clamp_max(1e300);
    } else {
      const Tensor fit = row_dot(wb, u) / square_b;
      center = at::where((square_b > 0).logical_and(fit.abs() < 1e30), fit, 0);
    }
    const Tensor c = u - center * r.b, e = weigh(r.row_weight, c);
    Tensor held = at::zeros_like(z), penalty = at::zeros_like(exponent);
    if (r.penalty_weight.defined()) held = r.penalty_weight.square() * z, penalty = row_dot(held, z);
    numbers = at::cat({at::full_like(exponent, empty), exponent, most(sizes), center, row_sum(u), row_sum(u.abs()),
                       row_dot(e, r.b), row_dot(e, c), row_dot(weigh(r.row_weight, u), u), square_b, penalty},
                      -1);
    coefficients = at::stack({du * e, du * wb, du, held}, -2);
  }
};

}  // namespace

Tensor plain_regression_part(const RegressionPoint& point, const RegressionSettings& settings) {
  const auto wide = [](const Tensor& t) { return t.defined() ? t.to(at::kDouble) : t; };
  const Rows rows{wide(regression_matvec(point.design(), point.x)), wide(point.b), wide(point.row_weight),
                  wide(point.penalty_weight)};
  const PlainPart part(rows, settings);
  const Tensor vectors =
      regression_transposed(point.design(), part.coefficients.to(accumulation_type(point.A)), false).to(at::kDouble);
  std::vector<c10::SymInt> full = leading_sizes(point);
  const auto sized = [&](const Tensor& t) {  // numbers of b and of A alone may lack leading dimensions
    std::vector<c10::SymInt> sizes = full;
    sizes.push_back(t.sym_size(-1));
    return t.expand_symint(sizes);
  };
  return at::cat({sized(part.numbers), sized(vectors.flatten(-2))}, -1);
}

Tensor plain_regression_part_statistics(const Tensor& logits, const MaybeTensor& direction, const MaybeTensor& steps,
                                        RESCALED_TARGET, RESCALED_REGRESSION_SETTINGS) {
  const auto wide = [](const MaybeTensor& t) { return t.has_value() ? t->to(at::kDouble).unsqueeze(-2) : Tensor(); };
  Tensor z = logits.to(at::kDouble).unsqueeze(-2);
  if (direction.has_value()) z = z + steps->to(at::kDouble).unsqueeze(-1) * direction->to(at::kDouble).unsqueeze(-2);
  return PlainPart({z, wide(b), wide(row_weight), wide(penalty_weight)}, RESCALED_THE_REGRESSION_SETTINGS).numbers;
}

std::tuple<Tensor, Tensor> plain_regression_part_gram(const Design& A, const Tensor& rows, c10::string_view curvature) {
  using Row = RegressionRows;
  const auto row = [&](int64_t i) { return rows.select(-2, i); };
  const Tensor zero = at::zeros_like(row(0));
  const Tensor alone = at::stack(
      {row(Row::gradient), row(Row::diagonal), row(Row::diagonal_rest), zero, zero, zero, row(Row::noise)}, -2);
  std::vector<c10::SymInt> sizes(rows.sym_sizes().begin(), rows.sym_sizes().end() - 2);
  sizes.push_back(RegressionStatistics::count);
  const Tensor statistics = at::zeros_symint(sizes, rows.options().dtype(at::kDouble));
  const RegressionCurvature found = regression_curvature(A, alone, statistics, curvature);
  const Tensor q = curvature == "full" ? row(Row::q) + row(Row::q_rest) : row(Row::q);
  const Tensor pair = regression_transposed(A, at::stack({row(Row::p), q}, -2), false);
  return {at::stack({found.gradient, pair.select(-2, 0), pair.select(-2, 1), found.noise}, -2).to(at::kDouble),
          found.hessian.to(at::kDouble)};
}

Tensor regression_part(const RegressionPoint& x, const RegressionSettings& settings) {
  static const auto op = handle<PartSignature>("torch_rescaled::_regression_part");
  return op.call(x.A, x.b, x.x, maybe(x.row_weight), maybe(x.penalty_weight), settings.kind, settings.form,
                 maybe(x.pattern.crow_indices), maybe(x.pattern.col_indices));
}
Tensor regression_part_statistics(const Tensor& logits, const Tensor& direction, const Tensor& steps,
                                  const RegressionPoint& x, const RegressionSettings& settings) {
  static const auto op = handle<StatisticsSignature>("torch_rescaled::_regression_part_statistics");
  return op.call(logits, maybe(direction), maybe(steps), x.b, maybe(x.row_weight), maybe(x.penalty_weight),
                 settings.kind, settings.form);
}
RegressionGram regression_part_gram(const Design& A, const Tensor& rows, c10::string_view curvature) {
  static const auto op = handle<GramSignature>("torch_rescaled::_regression_part_gram");
  auto [sides, gram] =
      op.call(A.A, rows, curvature, maybe(A.pattern.crow_indices), maybe(A.pattern.col_indices), A.columns());
  return {sides, gram};
}

static Tensor part(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN) {
  const RegressionPoint point = RESCALED_THE_REGRESSION;
  check_regression_point("_regression_part", point, RESCALED_THE_REGRESSION_SETTINGS);
  return plain_regression_part(point, RESCALED_THE_REGRESSION_SETTINGS);
}
static std::tuple<Tensor, Tensor> part_gram(const Tensor& A, const Tensor& rows, c10::string_view curvature,
                                            RESCALED_PATTERN, c10::SymInt n_columns) {
  check_curvature("_regression_part_gram", curvature, /*with_none=*/false);
  return plain_regression_part_gram({A, pattern_of(crow_indices, col_indices, n_columns)}, rows, curvature);
}

static Form form_of(const RegressionSettings& settings) {
  return settings.form == "rescaled" ? Form::rescaled : settings.form == "normalized" ? Form::normalized : Form::plain;
}

std::tuple<Tensor, Tensor> join_parts(const Tensor& parts, const RegressionSettings& settings) {
  const int64_t size = parts.size(1), columns = (size - Part::count) / Part::vectors;
  const Tensor statistics = at::empty({RegressionStatistics::count}, parts.options()),
               gradient = at::empty({columns}, parts.options());
  join_regression_parts(parts.const_data_ptr<double>(), parts.size(0), size, columns, form_of(settings),
                        statistics.mutable_data_ptr<double>(), gradient.mutable_data_ptr<double>());
  return {statistics, gradient};
}
Tensor join_part_statistics(const Tensor& parts, const RegressionSettings& settings) {
  const int64_t points = parts.size(1);
  const Tensor statistics = at::empty({points, RegressionStatistics::count}, parts.options());
  for (int64_t k = 0; k < points; ++k)
    join_regression_parts(parts.const_data_ptr<double>() + k * Part::count, parts.size(0), points * Part::count, 0,
                          form_of(settings), statistics[k].mutable_data_ptr<double>(), nullptr);
  return statistics;
}

RegressionCurvature finished_gram(const RegressionGram& sums, double square) {
  using Side = RegressionSides;
  const Tensor p = sums.sides[Side::p], q = sums.sides[Side::q], cross = at::outer(p, q);
  return {sums.sides[Side::gradient], sums.gram - cross - cross.t() + square * at::outer(p, p),
          sums.sides[Side::noise]};
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("_regression_part", TORCH_FN(rescaled::ops::part));
  m.impl("_regression_part_statistics", TORCH_FN(rescaled::ops::plain_regression_part_statistics));
  m.impl("_regression_part_gram", TORCH_FN(rescaled::ops::part_gram));
}
