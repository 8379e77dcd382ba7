// SPDX-License-Identifier: BSD-3-Clause
// From scores to weights and their derivatives, element by element. The formulas, numbered, are those of docs/math.md:
//   (3)  dS = r E - n delta,  dbeta = a E - p delta,  E = G V^T + g_rho
//   (5)  ad = r Sd + a (betad - ld),  rd = a Sd + r (betad - ld),  (nd, pd) = (ad, rd) for sinh, else (rd, ad),
//        dS2 = rd E + r Ed - nd delta - n deltad,  dbeta2 = ad E + a Ed - pd delta - p deltad,  Ed = G Vd^T
#pragma once
#include "masks.cuh"

namespace rescaled {
namespace {

// Masks, dropout and bias tangents of a tile's elements: in memory, filled by a loop, so that the unrolled arithmetic
// stays small where a tile has none of it (the interior of a causal problem, and one without masks and dropout).
template <class S, int kTiles>
struct ElementValues {
  bool weighted, drops, tangents;
  S log_weights[4 * kTiles], factors[4 * kTiles], bias_tangents[4 * kTiles];
  RESCALED_MEMBER S log_weight(int j, int x) const { return weighted ? log_weights[4 * j + x] : S(0); }
  RESCALED_MEMBER S dropout(int j, int x) const { return drops ? factors[4 * j + x] : S(1); }
  RESCALED_MEMBER S tangent(int j, int x) const { return tangents ? bias_tangents[4 * j + x] : S(0); }
};
template <class W, class Values>
RESCALED_DEVICE void fill_values(const W& walk, const Elementwise<typename W::S>& masks, int64_t first,
                                 bool with_tangents, Values& values) {
  const int64_t last_row = walk.first_row + kWarpRows * walk.plan.warps - 1, last_column = first + W::kColumns - 1;
  values.weighted =
      W::kByKeys ? masks.weighted(first, last_column, last_row) : masks.weighted(walk.first_row, last_row, last_column);
  values.drops = masks.drops, values.tangents = with_tangents && masks.tangent_bias.data != nullptr;
  if (!values.weighted && !values.drops && !values.tangents) return;
  RESCALED_ROLLED for (int i = 0; i < 4 * W::kTiles; ++i) {
    const int64_t row = walk.row(i % 4 / 2), column = walk.column(first, i / 4, i % 2);
    const int64_t query = W::kByKeys ? column : row, key = W::kByKeys ? row : column;
    if (values.weighted) values.log_weights[i] = masks.log_weight(query, key);
    if (values.drops) values.factors[i] = masks.dropout(query, key);
    if (values.tangents) values.bias_tangents[i] = masks.tangent(query, key);
  }
}

// What a query brings: log2 of its normalizer, the same as a power of two and a factor, and for the gradients the
// numbers of (3) and (5). The gradients' walks read them from arrays [batch][array][queries] of the workspace.
template <class S>
struct QueryNumbers {
  S shift, exponent, factor, grad_balance, delta, tangent_normalizer, tangent_delta;
};

template <class S>
RESCALED_DEVICE void set_normalizer(QueryNumbers<S>& q, S log_normalizer) {
  // +inf for a query without keys, so that its weights are 0.
  q.shift = log_normalizer == -infinity<S>() ? infinity<S>() : log_normalizer * static_cast<S>(kLog2e);
  const cuda::Weight<S> w = cuda::split_weight<S>(-q.shift);
  q.exponent = w.exponent, q.factor = w.factor;
}

// Number `array` of a query; beyond the problem those of a query without keys.
template <class S>
RESCALED_DEVICE S query_number(const AttentionParameters& p, int64_t b, int array, int64_t query) {
  if (query < p.queries) return static_cast<const S*>(p.workspace)[(b * kQueryArrays + array) * p.queries + query];
  return array == 0 ? infinity<S>() : array == 1 ? S(-1e30) : array == 2 ? S(1) : S(0);
}
template <class S, class Number>
RESCALED_DEVICE QueryNumbers<S> numbers_from(Number number) {
  return {number(0), number(1), number(2), number(3), number(4), number(5), number(6)};
}

// a, r and with them n = odd, p = even, from a score in units of log 2.
template <class S>
struct Weights {
  S even, odd, a, r;
};
template <class S, Kinds kKinds>
RESCALED_DEVICE Weights<S> weights_of(Kind kind, S score, bool weighted, S log_weight, const QueryNumbers<S>& q) {
  Weights<S> w;
  if (kKinds == Kinds::exp || (kKinds == Kinds::all && kind == Kind::exp)) {
    w.even = w.odd = w.a = w.r = exp2_of(weighted ? (score + log_weight) - q.shift : score - q.shift);
  } else {
    const cuda::Weight<S> weight =
        weighted ? cuda::split_weight<S>(log_weight - q.shift) : cuda::Weight<S>{q.exponent, q.factor};
    cuda::two_sided<S>(score, weight.exponent, w.even, w.odd);
    w.even *= weight.factor, w.odd *= weight.factor;
    w.a = kind == Kind::sinh ? w.odd : w.even, w.r = kind == Kind::sinh ? w.even : w.odd;
  }
  return w;
}

// The gradients of one element. `first`: dS; `second`: dS2; `value`: what multiplies G in dV; `bias`: dbeta or dbeta2.
template <class S>
struct ElementGradients {
  S value, first, second, bias;
};
template <class S, Kinds kKinds, bool kSecond>
RESCALED_DEVICE ElementGradients<S> gradients_of(Kind kind, const Weights<S>& w, const QueryNumbers<S>& q, S drop,
                                                 S product_e, S score_tangent, S product_ed, S bias_tangent) {
  constexpr bool kTwoSided = kKinds != Kinds::exp;  // exp is the case of a = r
  const bool odd_kind = kind == Kind::sinh;
  ElementGradients<S> d;
  const S e = product_e * drop + q.grad_balance;
  d.first = kTwoSided ? w.r * e - w.odd * q.delta : w.a * (e - q.delta);
  if constexpr (!kSecond) {
    d.value = w.a * drop, d.second = S(0);
    d.bias = kTwoSided ? w.a * e - w.even * q.delta : d.first;
  } else {
    const S ed = product_ed * drop, y = bias_tangent - q.tangent_normalizer;
    const S ad = w.r * score_tangent + w.a * y;
    d.value = ad * drop;
    if constexpr (!kTwoSided) {
      d.second = d.bias = ad * (e - q.delta) + w.a * (ed - q.tangent_delta);
    } else {
      const S rd = w.a * score_tangent + w.r * y, nd = odd_kind ? ad : rd, pd = odd_kind ? rd : ad;
      d.second = rd * e + w.r * ed - nd * q.delta - w.odd * q.tangent_delta;
      d.bias = ad * e + w.a * ed - pd * q.delta - w.even * q.tangent_delta;
    }
  }
  return d;
}

}  // namespace
}  // namespace rescaled
