// SPDX-License-Identifier: BSD-3-Clause
#include "plain.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/log.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/scalar_tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

namespace rescaled::ops {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

Tensor constant(const Tensor& like, double value) { return at::scalar_tensor(value, like.options()); }
Tensor row_sum(const Tensor& t) { return t.sum(-1, /*keepdim=*/true); }
Tensor column(const Tensor& t) { return t.unsqueeze(-1); }

// Everything in the arithmetic type; sums are [*, N, 1].
struct Weights {
  Tensor query, key, value;
  double scale;
  Tensor a, r, n, p, dropout;  // [*, N, M]; dropout undefined if there is none
  Tensor output, balance, log_normalizer;
  Tensor drop(const Tensor& t) const { return dropout.defined() ? t * dropout : t; }
};

Tensor dropout_factors(const Point& x, const AttentionSettings& settings, at::ScalarType type) {
  static const auto op = handle<DropoutMaskSignature>("torch_rescaled::_attention_dropout_mask");
  return op.call(x.dropout_seed, x.query.sym_size(-2), x.key.sym_size(-2), settings.dropout_p).to(type) /
         (1 - settings.dropout_p);
}

// Which scores count: undefined if all do.
Tensor attended(const Point& x, const AttentionSettings& settings) {
  Tensor allowed = x.mask;
  const auto both = [&](const Tensor& t) { allowed = allowed.defined() ? allowed.logical_and(t) : t; };
  if (settings.is_causal)
    both(at::ones_symint({x.query.sym_size(-2), x.key.sym_size(-2)}, x.query.options().dtype(at::kBool)).tril());
  if (x.bias.defined()) both(x.bias != -kInfinity);
  return allowed;
}

Weights weights(const Point& x, const AttentionSettings& settings) {
  const at::ScalarType type = accumulation_type(x.query);
  Weights w;
  w.query = x.query.to(type), w.key = x.key.to(type), w.value = x.value.to(type);
  w.scale =
      settings.scale.has_value() ? *settings.scale : 1 / std::sqrt(std::max(1., static_cast<double>(x.query.size(-1))));
  const bool two_sided = settings.kind != "exp";
  std::vector<c10::SymInt> sizes = leading_sizes(x);
  sizes.push_back(x.query.sym_size(-2)), sizes.push_back(x.key.sym_size(-2));
  const Tensor score = (at::matmul(w.query, w.key.mT()) * w.scale).expand_symint(sizes),
               allowed = attended(x, settings);
  const Tensor bias = x.bias.defined() ? x.bias.to(type) : constant(score, 0), low = constant(score, -kInfinity),
               zero = constant(score, 0);
  const auto keep = [&](const Tensor& t, const Tensor& otherwise) {
    return allowed.defined() ? at::where(allowed, t, otherwise) : t;
  };
  Tensor top = zero;
  if (x.key.sym_size(-2) != 0) {
    top = keep((two_sided ? score.abs() : score) + bias, low).amax(-1, /*keepdim=*/true).detach();
    top = at::where(top == -kInfinity, zero, top);
  }
  const Tensor plus = keep(score + bias - top, low).exp();  // exp(-inf): value and derivatives 0
  const Tensor minus = two_sided ? keep(bias - score - top, low).exp() : Tensor();
  const Tensor even = two_sided ? (plus + minus) / 2 : plus, sum = row_sum(even);
  const Tensor keyless = sum == 0, normalizer = at::where(keyless, constant(sum, 1), sum);
  const Tensor even_weight = even / normalizer;
  const Tensor odd_weight = two_sided ? (plus - minus) / 2 / normalizer : even_weight;
  const bool odd = settings.kind == "sinh";
  w.a = odd ? odd_weight : even_weight, w.r = odd ? even_weight : odd_weight, w.n = odd_weight, w.p = even_weight;
  if (settings.dropout_p > 0) w.dropout = dropout_factors(x, settings, type);
  w.output = at::matmul(w.drop(w.a), w.value);
  w.balance = row_sum(w.a);
  w.log_normalizer = at::where(keyless, low, top + normalizer.log());
  return w;
}

Tensor in_type(const Tensor& t, const Tensor& like) { return t.defined() ? t.to(like.scalar_type()) : t; }
Tensor plus(const Tensor& a, const Tensor& b) { return !a.defined() ? b : !b.defined() ? a : a + b; }
Tensor reduced(const Tensor& gradient, const Tensor& input) {  // to an input's shape and type
  return gradient.sum_to_size_symint(input.sym_sizes()).to(input.scalar_type());
}

struct TangentParts {  // value, bias may be undefined
  Tensor score, value, bias, log_normalizer, weight, output, balance;
};

TangentParts tangent_parts(const Tangents& t, const Weights& w) {
  TangentParts d;
  const Tensor query = in_type(t.query, w.query), key = in_type(t.key, w.key);
  if (query.defined()) d.score = at::matmul(query, w.key.mT());
  if (key.defined()) d.score = plus(d.score, at::matmul(w.query, key.mT()));
  d.score = d.score.defined() ? d.score * w.scale : at::zeros_like(w.a);
  d.value = in_type(t.value, w.value), d.bias = in_type(t.bias, w.a);
  const Tensor moved = w.n * d.score;
  d.log_normalizer = row_sum(d.bias.defined() ? moved + w.p * d.bias : moved);
  d.weight = d.bias.defined() ? w.r * d.score + w.a * d.bias : w.r * d.score;
  d.output = at::matmul(w.drop(d.weight), w.value) - d.log_normalizer * w.output;
  if (d.value.defined()) d.output = d.output + at::matmul(w.drop(w.a), d.value);
  d.balance = row_sum(d.weight) - d.log_normalizer * w.balance;
  return d;
}

// E = D (G V^T) + g_rho, and with a tangent of V its derivative; 0 where nothing enters.
Tensor weight_cotangent(const Tensor& grad_output, const Tensor& value, const Tensor& grad_balance, const Weights& w) {
  Tensor e;
  if (grad_output.defined() && value.defined()) e = w.drop(at::matmul(grad_output, value.mT()));
  if (grad_balance.defined()) e = plus(e, column(grad_balance));
  return e.defined() ? e : constant(w.a, 0);
}

// delta = rowsum(G W) + g_rho rho - g_l, and with tangents of W and rho its derivative.
Tensor row_cotangent(const Tensor& grad_output, const Tensor& output, const Tensor& grad_balance, const Tensor& balance,
                     const Tensor& grad_log_normalizer, const Weights& w) {
  Tensor delta;
  if (grad_output.defined()) delta = row_sum(grad_output * output);
  if (grad_balance.defined()) delta = plus(delta, column(grad_balance) * balance);
  if (grad_log_normalizer.defined()) delta = plus(delta, -column(grad_log_normalizer));
  return delta.defined() ? delta : constant(w.a, 0);
}

// (D a)^T G
Tensor value_gradient(const Tensor& weight, const Tensor& grad_output, const Weights& w) {
  return grad_output.defined() ? at::matmul(w.drop(weight).mT(), grad_output) : at::zeros_like(w.value);
}

}  // namespace

Saved plain_attention_forward(const Point& x, const AttentionSettings& settings) {
  const Weights w = weights(x, settings);
  return {w.output.to(x.query.scalar_type()), w.balance.squeeze(-1), w.log_normalizer.squeeze(-1)};
}

std::array<Tensor, 4> plain_attention_backward(const Cotangents& g, const Point& x, const AttentionSettings& settings) {
  const Weights w = weights(x, settings);
  const Tensor grad_output = in_type(g.output, w.value);
  const Tensor e = weight_cotangent(grad_output, w.value, g.balance, w);
  const Tensor delta = row_cotangent(grad_output, w.output, g.balance, w.balance, g.log_normalizer, w);
  const Tensor score = w.r * e - w.n * delta;  // dS
  Tensor grad_bias;
  if (x.bias.defined()) grad_bias = reduced(w.a * e - w.p * delta, x.bias);
  return {reduced(at::matmul(score, w.key) * w.scale, x.query),
          reduced(at::matmul(score.mT(), w.query) * w.scale, x.key),
          reduced(value_gradient(w.a, grad_output, w), x.value), grad_bias};
}

Saved plain_attention_jvp(const Tangents& t, const Point& x, const AttentionSettings& settings) {
  const Weights w = weights(x, settings);
  const TangentParts d = tangent_parts(t, w);
  return {d.output.to(x.query.scalar_type()), d.balance.squeeze(-1), d.log_normalizer.squeeze(-1)};
}

std::array<Tensor, 7> plain_attention_double_backward(const Tangents& t, const Cotangents& g, const Point& x,
                                                      const AttentionSettings& settings) {
  const Weights w = weights(x, settings);
  const TangentParts d = tangent_parts(t, w);
  const bool sinh = settings.kind == "sinh";
  const Tensor y = d.bias.defined() ? d.bias - d.log_normalizer : -d.log_normalizer;
  const Tensor ad = w.r * d.score + w.a * y, rd = w.a * d.score + w.r * y, nd = sinh ? ad : rd, pd = sinh ? rd : ad;

  const Tensor grad_output = in_type(g.output, w.value);
  const Tensor e = weight_cotangent(grad_output, w.value, g.balance, w);
  const Tensor ed = weight_cotangent(grad_output, d.value, {}, w);
  const Tensor delta = row_cotangent(grad_output, w.output, g.balance, w.balance, g.log_normalizer, w);
  const Tensor tangent_delta = row_cotangent(grad_output, d.output, g.balance, d.balance, {}, w);

  const Tensor first = w.r * e - w.n * delta;                                  // dS
  const Tensor second = rd * e + w.r * ed - nd * delta - w.n * tangent_delta;  // its derivative along t
  const Tensor query = in_type(t.query, w.query), key = in_type(t.key, w.key);
  Tensor grad_query = at::matmul(second, w.key), grad_key = at::matmul(second.mT(), w.query);
  if (key.defined()) grad_query = grad_query + at::matmul(first, key);
  if (query.defined()) grad_key = grad_key + at::matmul(first.mT(), query);
  Tensor grad_bias;
  if (x.bias.defined()) grad_bias = reduced(ad * e + w.a * ed - pd * delta - w.p * tangent_delta, x.bias);
  return {d.output.to(x.query.scalar_type()),
          d.balance.squeeze(-1),
          d.log_normalizer.squeeze(-1),
          reduced(grad_query * w.scale, x.query),
          reduced(grad_key * w.scale, x.key),
          reduced(value_gradient(ad, grad_output, w), x.value),
          grad_bias};
}

// Threefry-2x32-13 of (seed, query, key), as in kernels/random.h: words are int64 here, and cut to 32 bits.
Tensor plain_dropout_mask(const Tensor& dropout_seed, int64_t queries, int64_t keys, double dropout_p) {
  constexpr int64_t kWord = 0xFFFFFFFF;
  const auto word = [](const Tensor& t) { return t.bitwise_and(kWord); };
  const Tensor seed = dropout_seed.unsqueeze(-1).unsqueeze(-1), low = word(seed),
               high = word(seed.bitwise_right_shift(32));
  const Tensor schedule[] = {low, high, low.bitwise_xor(high).bitwise_xor(0x1BD11BDA)};
  constexpr int kRounds = 13, kRotations[] = {13, 15, 26, 6, 17, 29, 16, 24};
  Tensor x0 = word(column(at::arange(queries, seed.options())) + low),
         x1 = word(at::arange(keys, seed.options()) + high);
  for (int round = 0; round < kRounds; ++round) {
    const int bits = kRotations[round % 8];
    x0 = word(x0 + x1);
    x1 = word(x1.bitwise_left_shift(bits)).bitwise_or(x1.bitwise_right_shift(32 - bits)).bitwise_xor(x0);
    if (round % 4 == 3) {
      const int step = round / 4 + 1;
      x0 = word(x0 + schedule[step % 3]), x1 = word(x1 + schedule[(step + 1) % 3] + step);
    }
  }
  return x0.bitwise_right_shift(8) >= static_cast<int64_t>(std::ceil(dropout_p * 16777216.0));
}

}  // namespace rescaled::ops
