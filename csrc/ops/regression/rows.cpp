// SPDX-License-Identifier: BSD-3-Clause
#include "rows.h"

#include <ATen/ops/abs.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/sinh.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <limits>
#include <tuple>

namespace rescaled::ops {
namespace {

Tensor weigh(const Tensor& weight, const Tensor& t) { return weight.defined() ? weight * t : t; }

// The largest exponent of the rows, for the plain form of b too: [*, 1].
Tensor shift_of(const Rows& r, const RegressionSettings& settings) {
  if (r.logits.sym_size(-1) == 0) return row_sum(r.logits);  // zeros
  const Tensor z = r.logits.detach();
  const Tensor sizes = settings.kind == "exp" ? z : z.abs();
  Tensor top =
      (r.mask.defined() ? sizes.masked_fill(r.mask.logical_not(), -std::numeric_limits<double>::infinity()) : sizes)
          .amax(-1, /*keepdim=*/true);
  if (settings.form == "plain") top = at::maximum(top, r.b.detach().abs().amax(-1, /*keepdim=*/true).log());
  return at::where(top == -std::numeric_limits<double>::infinity(), at::scalar_tensor(0, top.options()), top);
}

}  // namespace

std::pair<Tensor, Tensor> scaled_phi(const Tensor& z, const Tensor& shift, const std::string& kind) {
  const Tensor rising = (z - shift).exp();
  if (kind == "exp") return {rising, rising};
  const Tensor falling = (-z - shift).exp(), even = (rising + falling) / 2;
  // The difference has no correct digit near 0.
  const Tensor odd = at::where(z.abs() < 1, z.sinh() * (-shift).exp(), (rising - falling) / 2);
  return kind == "cosh" ? std::pair(even, odd) : std::pair(odd, even);
}

RowValues row_values(const Rows& r, const RegressionSettings& settings) {
  RowValues v;
  v.sum_shift = shift_of(r, settings);
  // Behind the mask nothing may overflow: a derivative would be 0 times infinity.
  const Tensor z = r.mask.defined() ? at::where(r.mask, r.logits, v.sum_shift) : r.logits;
  std::tie(v.u, v.du) = scaled_phi(z, v.sum_shift, settings.kind);
  Tensor divisor;
  if (r.mask.defined()) {
    const Tensor hidden = r.mask.logical_not();
    v.u = v.u.masked_fill(hidden, 0), v.du = v.du.masked_fill(hidden, 0);
    v.sum = row_sum(v.u);
    divisor = v.sum.masked_fill(hidden.all(-1, /*keepdim=*/true), 1);  // a row without elements
  } else {
    divisor = v.sum = row_sum(v.u);
  }
  if (settings.form == "normalized") {
    v.u = v.u / divisor, v.du = v.du / divisor;
    v.shift = at::zeros_like(v.sum_shift), v.unit = at::ones_like(v.sum);
  } else {
    v.shift = v.sum_shift;
    v.unit = settings.form == "rescaled" ? v.sum : (-v.shift).exp();
  }
  v.c = v.u - v.unit * r.b;
  v.weighted = weigh(r.row_weight, v.c);
  v.beta = settings.form == "rescaled"     ? row_dot(r.b, v.weighted)
           : settings.form == "normalized" ? row_dot(v.u, v.weighted)
                                           : at::zeros_like(v.sum);
  return v;
}

Tensor scaled_loss(const RowValues& v) { return row_dot(v.c, v.weighted) / 2; }
Tensor penalty(const Rows& r) {
  return r.penalty_weight.defined() ? row_sum((r.penalty_weight * r.logits).square()) / 2 : Tensor();
}

Rows row_gradient(const Rows& r, const RowValues& v, const RegressionSettings&) {
  return {v.du * (v.weighted - v.beta), -v.unit * v.weighted, r.row_weight.defined() ? v.c.square() / 2 : Tensor(), {}};
}

Rows row_gradient_tangent(const Rows& r, const RowValues& v, const Rows& t, const RegressionSettings& settings) {
  const bool normalized = settings.form == "normalized", rescaled = settings.form == "rescaled";
  // Tangents of u, du, unit, c, weighted, beta; u'' = u for every kind.
  Tensor u, du, unit, beta;
  if (t.logits.defined()) {
    u = v.du * t.logits, du = v.u * t.logits;
    const Tensor total = row_sum(u);  // in the normalized form of log(sum u)
    if (normalized) u = u - v.u * total, du = du - v.du * total;
    if (rescaled) unit = total;
  }
  Tensor c = plus(u, t.b.defined() ? -v.unit * t.b : Tensor());
  if (unit.defined()) c = c - unit * r.b;
  Tensor weighted = product(t.row_weight, v.c);
  if (c.defined()) weighted = plus(weighted, weigh(r.row_weight, c));
  if (rescaled) beta = plus(row_dot(t.b, v.weighted), row_dot(r.b, weighted));
  if (normalized) beta = plus(row_dot(u, v.weighted), row_dot(v.u, weighted));
  Tensor inner = weighted;
  if (beta.defined()) inner = inner.defined() ? inner - beta : -beta;
  Rows out;
  out.logits = plus(du.defined() ? du * (v.weighted - v.beta) : Tensor(), product(v.du, inner));
  const Tensor target = plus(product(unit, v.weighted), product(v.unit, weighted));
  out.b = target.defined() ? -target : Tensor();
  if (r.row_weight.defined()) out.row_weight = product(v.c, c);
  return out;
}

Rows penalty_gradient(const Rows& r) {
  if (!r.penalty_weight.defined()) return {};
  return {r.penalty_weight.square() * r.logits, {}, {}, r.penalty_weight * r.logits.square()};
}
Rows penalty_gradient_tangent(const Rows& r, const Rows& t) {
  if (!r.penalty_weight.defined()) return {};
  const Tensor cross = 2 * r.penalty_weight * r.logits;
  return {plus(product(cross, t.penalty_weight), product(r.penalty_weight.square(), t.logits)),
          {},
          {},
          plus(product(t.penalty_weight, r.logits.square()), product(cross, t.logits))};
}

}  // namespace rescaled::ops
