// SPDX-License-Identifier: BSD-3-Clause
#include "plain.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include "design.h"
#include "resident.h"
#include "rows.h"

namespace rescaled::ops {
namespace {

Tensor reduced(const Tensor& gradient, const Tensor& like) {
  return gradient.defined() && like.defined() ? gradient.sum_to_size_symint(like.sym_sizes()).to(like.scalar_type())
                                              : Tensor();
}

// Everything about a point that the formulas start from.
struct PlainPoint {
  RegressionPoint point;  // in the type of the arithmetic
  Rows rows;
  RowValues values;
  PlainPoint(const RegressionPoint& x, const RegressionSettings& settings) {
    const at::ScalarType type = accumulation_type(x.A);
    point = {x.A.to(type), x.b, x.x, x.row_weight, x.penalty_weight, x.pattern};
    rows = {times_vector(point.design(), point.x), x.b, x.row_weight, x.penalty_weight};
    values = row_values(rows, settings);
  }
  Tensor restored(const Tensor& t) const {
    if (!t.defined()) return t;
    const Tensor half = values.shift.exp();  // twice: e^(2 shift) may overflow where the product does not
    return half * t * half;
  }
  Rows restored(const Rows& loss, const Rows& penalty) const {
    return {plus(restored(loss.logits), penalty.logits), restored(loss.b), restored(loss.row_weight),
            plus(restored(loss.penalty_weight), penalty.penalty_weight)};
  }
  Rows gradient(const RegressionSettings& settings) const {
    return restored(row_gradient(rows, values, settings), penalty_gradient(rows));
  }
  // Tangents of the rows, given those of the point.
  Rows tangents(const RegressionPoint& t) const {
    const Tensor moved =
                     t.A.defined() ? times_vector({t.A.to(point.A.scalar_type()), point.pattern}, point.x) : Tensor(),
                 turned = t.x.defined() ? times_vector(point.design(), t.x) : Tensor();
    return {plus(moved, turned), t.b, t.row_weight, t.penalty_weight};
  }
};

Tensor along(const Rows& gradient, const Rows& tangents) {
  const Tensor sum = plus(plus(row_dot(gradient.logits, tangents.logits), row_dot(gradient.b, tangents.b)),
                          plus(row_dot(gradient.row_weight, tangents.row_weight),
                               row_dot(gradient.penalty_weight, tangents.penalty_weight)));
  return sum.defined() ? sum.squeeze(-1) : sum;
}

Tensor full_sized(const Tensor& t, const RegressionPoint& x) { return t.expand_symint(leading_sizes(x)); }

}  // namespace

Tensor unscaled(const Tensor& t, const Tensor& log_scale) {
  Tensor half = (log_scale / 2).exp();
  while (half.dim() < t.dim()) half = half.unsqueeze(-1);
  return half * t * half;
}

std::tuple<Tensor, Tensor> plain_regression_evaluate(const RegressionPoint& x, const RegressionSettings& settings) {
  const auto [logits, statistics, rows] = resident_point(x, settings);
  const Tensor gradient = regression_transposed(x.design(), rows.narrow(-2, RegressionRows::gradient, 1)).squeeze(-2);
  return {statistics.contiguous(), gradient.to(at::kDouble).contiguous()};
}

Three plain_regression_gauss_newton(const RegressionPoint& x, const RegressionSettings& settings) {
  const ResidentPoint at = resident_point(x, settings);
  const RegressionCurvature found = regression_curvature(x.design(), at.rows, at.statistics, "gauss_newton");
  return {at.statistics.contiguous(), found.gradient.to(at::kDouble), found.hessian.contiguous()};
}

Tensor plain_regression_product(const RegressionPoint& x, const Tensor& v, const RegressionSettings& settings,
                                c10::string_view curvature) {
  using Row = RegressionRows;
  const ResidentPoint at = resident_point(x, settings);
  const Tensor t = regression_matvec(x.design(), v), statistics = at.statistics;
  const auto row = [&](int64_t i) { return at.rows.select(-2, i); };
  Tensor diagonal = row(Row::diagonal), q = row(Row::q);
  if (curvature == "clipped") diagonal = diagonal + row(Row::diagonal_rest).clamp_min(0);
  if (curvature == "full") diagonal = diagonal + row(Row::diagonal_rest), q = q + row(Row::q_rest);
  const Tensor p = row(Row::p), p_t = (p * t).sum(-1, true), q_t = (q * t).sum(-1, true);
  const Tensor square = statistics.select(-1, RegressionStatistics::square).unsqueeze(-1).to(t.scalar_type());
  const Tensor sides = diagonal * t - p * (q_t - square * p_t) - q * p_t;
  const Tensor scaled = regression_transposed(x.design(), sides.unsqueeze(-2)).squeeze(-2);
  return unscaled(scaled.to(at::kDouble), statistics.select(-1, RegressionStatistics::log_scale)).to(t.scalar_type());
}

std::tuple<Tensor, Tensor> plain_regression_forward(const RegressionPoint& x, const RegressionSettings& settings) {
  const PlainPoint at(x, settings);
  const Tensor loss = plus(at.restored(scaled_loss(at.values)), penalty(at.rows)).squeeze(-1);
  return {full_sized(loss, x), sum_of_rows(at.point.design(), at.gradient(settings).logits)};
}

RegressionPoint plain_regression_backward(const Tensor& grad_loss, const RegressionPoint& x,
                                          const RegressionSettings& settings, std::array<bool, 5> need) {
  const PlainPoint at(x, settings);
  const Rows g = at.gradient(settings);
  const Tensor grad = grad_loss.unsqueeze(-1);
  RegressionPoint out;
  if (need[0]) out.A = outer(grad * g.logits, x.x, x.design(), leading_sizes(x)).to(x.A.scalar_type());
  if (need[1]) out.b = reduced(grad * g.b, x.b);
  if (need[2]) out.x = reduced(grad * sum_of_rows(at.point.design(), g.logits), x.x);
  if (need[3]) out.row_weight = reduced(product(grad, g.row_weight), x.row_weight);
  if (need[4]) out.penalty_weight = reduced(product(grad, g.penalty_weight), x.penalty_weight);
  return out;
}

Tensor plain_regression_jvp(const RegressionPoint& tangents, const RegressionPoint& x,
                            const RegressionSettings& settings) {
  const PlainPoint at(x, settings);
  const Tensor t = along(at.gradient(settings), at.tangents(tangents));
  return full_sized(t.defined() ? t : at::zeros({}, x.b.options()), x);
}

RegressionDoubleBackward plain_regression_double_backward(const RegressionPoint& tangents, const Tensor& grad_loss,
                                                          const RegressionPoint& x, const RegressionSettings& settings,
                                                          std::array<bool, 6> need) {
  const PlainPoint at(x, settings);
  const Rows g = at.gradient(settings), t = at.tangents(tangents);
  RegressionDoubleBackward out;
  if (const Tensor tangent = along(g, t); need[0] && tangent.defined()) out.tangent_loss = full_sized(tangent, x);
  if (!grad_loss.defined()) return out;
  const Rows h =
      at.restored(row_gradient_tangent(at.rows, at.values, t, settings), penalty_gradient_tangent(at.rows, t));
  const Tensor grad = grad_loss.unsqueeze(-1), turned = product(grad, h.logits), plain = grad * g.logits;
  RegressionPoint& d = out.gradients;
  const std::vector<c10::SymInt> full = leading_sizes(x);
  if (need[1]) {
    d.A = plus(turned.defined() ? outer(turned, x.x, x.design(), full) : Tensor(),
               tangents.x.defined() ? outer(plain, tangents.x, x.design(), full) : Tensor());
    if (d.A.defined()) d.A = d.A.to(x.A.scalar_type());
  }
  if (need[2]) d.b = reduced(product(grad, h.b), x.b);
  if (need[3])
    d.x = reduced(
        plus(turned.defined() ? sum_of_rows(at.point.design(), turned) : Tensor(),
             tangents.A.defined() ? sum_of_rows({tangents.A.to(plain.scalar_type()), x.pattern}, plain) : Tensor()),
        x.x);
  if (need[4]) d.row_weight = reduced(product(grad, h.row_weight), x.row_weight);
  if (need[5]) d.penalty_weight = reduced(product(grad, h.penalty_weight), x.penalty_weight);
  return out;
}

}  // namespace rescaled::ops
