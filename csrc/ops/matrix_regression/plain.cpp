// SPDX-License-Identifier: BSD-3-Clause
#include "plain.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "../../kernels/matrix_regression/parameters.h"
#include "../regression/rows.h"

namespace rescaled::ops {
namespace {

const double kOctave = std::log(2.0);

Tensor transposed(const Tensor& t) { return t.transpose(-2, -1); }
RegressionSettings of_rows(const MatrixSettings& settings) { return {settings.kind, settings.form}; }

// Summed over the leading dimensions along which an input is broadcast.
Tensor reduced(const Tensor& gradient, const Tensor& like) {
  return gradient.defined() ? gradient.sum_to_size_symint(like.sym_sizes()) : gradient;
}

// A point as the rows of a regression whose logits are query key^T.
struct PlainPoint {
  MatrixPoint point;
  RegressionSettings settings;
  Rows rows;
  RowValues values;
  PlainPoint(const MatrixPoint& x, const MatrixSettings& given) : point(x), settings(of_rows(given)) {
    Tensor mask = x.mask;
    if (given.is_causal) {
      const Tensor causal =
          at::ones_symint({x.query.sym_size(-2), x.key.sym_size(-2)}, x.query.options().dtype(at::kBool)).tril();
      mask = mask.defined() ? mask.logical_and(causal) : causal;
    }
    std::vector<c10::SymInt> full = leading_sizes(x);
    full.push_back(x.query.sym_size(-2)), full.push_back(x.key.sym_size(-2));
    const Tensor logits = at::matmul(x.query, transposed(x.key)).expand_symint(full);
    rows = {logits, hide(dense_target(x, logits, mask, given), mask).expand_symint(full), {}, {}, mask};
    values = row_values(rows, settings);
  }
  static Tensor hide(const Tensor& t, const Tensor& mask) {
    return t.defined() && mask.defined() ? t.masked_fill(mask.logical_not(), 0) : t;
  }
  Tensor restored(const Tensor& t) const {
    if (!t.defined()) return t;
    const Tensor half = values.shift.exp();  // twice: e^(2 shift) may overflow where the product does not
    return half * t * half;
  }
  Rows scaled_gradient() const { return row_gradient(rows, values, settings); }
  Rows gradient() const {
    const Rows g = scaled_gradient();
    return {restored(g.logits), restored(g.b), {}, {}};
  }
  Rows tangents(const MatrixPoint& t) const {
    const Tensor turned = t.query.defined() ? at::matmul(t.query, transposed(point.key)) : Tensor(),
                 moved = t.key.defined() ? at::matmul(point.query, transposed(t.key)) : Tensor();
    return {plus(turned, moved), hide(t.target, rows.mask), {}, {}};
  }
  // p and q of the Hessian diag(D) - p q^T - q p^T + square p p^T of a row, and its D.
  Tensor q(bool full) const {
    if (settings.form == "plain") return at::zeros_like(values.du);
    if (settings.form == "rescaled") return values.du * rows.b;
    return values.du * (full ? values.u + values.c - values.beta : values.u);
  }
  Tensor diagonal(bool full) const {
    const Tensor square = values.du.square();
    return full ? square + values.u * (values.c - values.beta) : square;
  }
  Tensor square() const {
    if (settings.form == "plain") return at::zeros_like(values.sum);
    const Tensor& t = settings.form == "rescaled" ? rows.b : values.u;
    return row_dot(t, t);
  }
};

Tensor along(const Rows& gradient, const Rows& tangents) {
  const Tensor sum = plus(row_dot(gradient.logits, tangents.logits), row_dot(gradient.b, tangents.b));
  return sum.defined() ? sum.squeeze(-1) : sum;
}

}  // namespace

MatrixNumbers matrix_numbers(const Tensor& statistics) {
  using Number = MatrixRegressionStatistics;
  return {statistics.select(-1, Number::reference), statistics.select(-1, Number::sum),
          statistics.select(-1, Number::beta), statistics.select(-1, Number::square),
          statistics.select(-1, Number::loss)};
}

Tensor half_scale(const Tensor& statistics, const MatrixSettings& settings) {
  const Tensor reference = statistics.select(-1, MatrixRegressionStatistics::reference).unsqueeze(-1);
  return settings.form == "normalized" ? at::ones_like(reference) : reference.exp2();
}
Tensor row_losses(const Tensor& statistics, const MatrixSettings& settings) {
  const Tensor half = half_scale(statistics, settings).squeeze(-1);
  return half * statistics.select(-1, MatrixRegressionStatistics::loss) * half;
}

Tensor plain_matrix_statistics(const MatrixPoint& x, const MatrixSettings& settings) {
  const PlainPoint at(x, settings);
  const RowValues& v = at.values;
  return at::stack({v.sum_shift / kOctave, v.sum, v.beta, at.square(), scaled_loss(v)}, -1).squeeze(-2);
}
Tensor plain_matrix_gradient(const MatrixPoint& x, const MatrixSettings& settings) {
  return at::matmul(PlainPoint(x, settings).scaled_gradient().logits, x.key);
}
Two plain_matrix_moments(const MatrixPoint& x, const MatrixSettings& settings, bool full) {
  const PlainPoint at(x, settings);
  return {at::matmul(at.values.du, x.key), at::matmul(at.q(full), x.key)};
}
Tensor plain_matrix_product(const MatrixPoint& x, const Tensor& v, const MatrixSettings& settings, bool full) {
  const PlainPoint at(x, settings);
  const Tensor t = at::matmul(v, transposed(x.key)), p = at.values.du, q = at.q(full);
  const Tensor p_t = row_dot(p, t), q_t = row_dot(q, t);
  return at::matmul(at.diagonal(full) * t - p * (q_t - at.square() * p_t) - q * p_t, x.key);
}

MatrixCurvature plain_matrix_curvature(const MatrixPoint& x, const Tensor& rows, const MatrixSettings& given,
                                       bool full) {
  MatrixSettings settings = given;
  const MatrixPoint some = rows_of(x, rows, settings);
  const PlainPoint at(some, settings);
  return {at.diagonal(full), at.values.du, at.q(full), at.square(), at.values.shift};
}

Tensor plain_matrix_tangents(const MatrixPoint& tangents, const MatrixPoint& x, const MatrixSettings& settings) {
  const PlainPoint at(x, settings);
  const RowValues& v = at.values;
  const Rows t = at.tangents(tangents);
  const Tensor zero = at::zeros_like(v.sum);
  const auto or_zero = [&](const Tensor& number) { return number.defined() ? number : zero; };
  Tensor sum = zero, beta = zero;
  if (settings.form != "plain") {
    const bool rescaled = settings.form == "rescaled";
    const Tensor moved = product(v.du, t.logits);
    sum = or_zero(row_dot(v.du, t.logits));
    beta = or_zero(plus(row_dot(moved, rescaled ? at.rows.b : v.c + v.u),
                        row_dot(t.b, rescaled ? v.c - v.unit * at.rows.b : -v.u))) -
           sum * (rescaled ? at.square() : v.beta + at.square());
  }
  const Tensor loss = along(at.gradient(), t);
  return at::stack({loss.defined() ? loss.unsqueeze(-1) : zero, sum, beta}, -1).squeeze(-2);
}
Tensor plain_matrix_gradient_tangent(const MatrixPoint& tangents, const MatrixPoint& x,
                                     const MatrixSettings& settings) {
  const PlainPoint at(x, settings);
  const Rows h = row_gradient_tangent(at.rows, at.values, at.tangents(tangents), at.settings);
  const Tensor turned = at::matmul(h.logits.defined() ? h.logits : at::zeros_like(at.values.du), x.key);
  return tangents.key.defined() ? turned + at::matmul(at.scaled_gradient().logits, tangents.key) : turned;
}

Tensor plain_matrix_columns(const Tensor& weight, const MatrixPoint& tangents, bool tangent, const MatrixPoint& x,
                            const MatrixSettings& settings) {
  const PlainPoint at(x, settings);
  const Tensor still = weight.unsqueeze(-1) * at.gradient().logits;
  if (!tangent) return at::matmul(transposed(still), x.query);
  const Rows h = row_gradient_tangent(at.rows, at.values, at.tangents(tangents), at.settings);
  const Tensor turned = h.logits.defined() ? weight.unsqueeze(-1) * at.restored(h.logits) : at::zeros_like(still);
  const Tensor sum = at::matmul(transposed(turned), x.query);
  return tangents.query.defined() ? sum + at::matmul(transposed(still), tangents.query) : sum;
}
Tensor plain_matrix_elements(const Tensor& weight, const MatrixPoint& tangents, bool tangent, const MatrixPoint& x,
                             const MatrixSettings& settings) {
  const PlainPoint at(x, settings);
  const Tensor still = at.gradient().b;
  if (!tangent) return weight.unsqueeze(-1) * still;
  const Rows h = row_gradient_tangent(at.rows, at.values, at.tangents(tangents), at.settings);
  return h.b.defined() ? weight.unsqueeze(-1) * at.restored(h.b) : at::zeros_like(still);
}

Tensor plain_matrix_jvp(const MatrixPoint& tangents, const MatrixPoint& x, const MatrixSettings& settings) {
  const PlainPoint at(x, settings);
  const Tensor t = along(at.gradient(), at.tangents(tangents));
  return t.defined() ? t : at::zeros_like(at.values.sum).squeeze(-1);
}

MatrixDoubleBackward plain_matrix_double_backward(const MatrixPoint& tangents, const Tensor& grad_loss,
                                                  const MatrixPoint& x, const MatrixSettings& settings,
                                                  std::array<bool, 4> need) {
  const PlainPoint at(x, settings);
  const Rows g = at.gradient(), t = at.tangents(tangents);
  MatrixDoubleBackward out;
  if (need[0]) out.tangent_loss = along(g, t);
  if (!grad_loss.defined()) return out;
  const Rows h = row_gradient_tangent(at.rows, at.values, t, at.settings);
  const Tensor grad = grad_loss.unsqueeze(-1), turned = product(grad, at.restored(h.logits)), still = grad * g.logits;
  MatrixPoint& d = out.gradients;
  if (need[1])
    d.query = reduced(plus(turned.defined() ? at::matmul(turned, x.key) : Tensor(),
                           tangents.key.defined() ? at::matmul(still, tangents.key) : Tensor()),
                      x.query);
  if (need[2])
    d.key = reduced(plus(turned.defined() ? at::matmul(transposed(turned), x.query) : Tensor(),
                         tangents.query.defined() ? at::matmul(transposed(still), tangents.query) : Tensor()),
                    x.key);
  if (need[3]) d.target = reduced(product(grad, at.restored(h.b)), x.target);
  return out;
}

}  // namespace rescaled::ops
