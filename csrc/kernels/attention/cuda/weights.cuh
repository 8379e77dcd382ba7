// SPDX-License-Identifier: BSD-3-Clause
// From scores to weights and their derivatives, element by element. The formulas, numbered, are those of docs/math.md:
//   (3)  dS = r E - n delta,  dbeta = a E - p delta,  E = G V^T + g_rho
//   (5)  ad = r Sd + a (betad - ld),  rd = a Sd + r (betad - ld),  (nd, pd) = (ad, rd) for sinh, else (rd, ad),
//        dS2 = rd E + r Ed - nd delta - n deltad,  dbeta2 = ad E + a Ed - pd delta - p deltad,  Ed = G Vd^T
#pragma once
#include <utility>

#include "masks.cuh"

namespace rescaled {
namespace {

// Log weights, dropout and bias tangents of a tile's elements (j, x). Of a tile that has none: the interior of a
// problem without masks, bias and dropout;
template <class S>
struct NoValues {
  static constexpr bool weighted = false;
  RESCALED_MEMBER S log_weight(int, int) const { return S(0); }
  RESCALED_MEMBER S dropout(int, int) const { return S(1); }
  RESCALED_MEMBER S tangent(int, int) const { return S(0); }
};
// of one where a problem ends or a causal one's diagonal is: the columns that a row meets are an interval;
template <class S>
struct EdgeValues {
  static constexpr bool weighted = true;
  int begin[2], count[2];  // of the rows g and g + 8, from this thread's first column
  RESCALED_MEMBER S log_weight(int j, int x) const {
    const int offset = 8 * j + x % 2 - begin[x / 2];
    return static_cast<unsigned>(offset) < static_cast<unsigned>(count[x / 2]) ? S(0) : -infinity<S>();
  }
  RESCALED_MEMBER S dropout(int, int) const { return S(1); }
  RESCALED_MEMBER S tangent(int, int) const { return S(0); }
};
template <class W>
RESCALED_DEVICE EdgeValues<typename W::S> edge_values(const W& walk, int first) {
  EdgeValues<typename W::S> values;
  const int offset = first + 2 * walk.t;
  RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
    const int row = walk.row(h), least_column = W::kByKeys && walk.p.causal ? row : 0;
    const int most = !W::kByKeys && walk.p.causal ? least(walk.column_count, row + 1) : walk.column_count;
    values.begin[h] = least_column - offset;
    values.count[h] = row < walk.row_count && most > least_column ? most - least_column : 0;
  }
  return values;
}
// and of any.
template <class W>
struct AnyValues {
  static constexpr bool weighted = true;
  using S = typename W::S;
  const W& walk;
  const Elementwise<S>& masks;
  const int first;
  RESCALED_MEMBER int query(int j, int x) const { return W::kByKeys ? walk.column(first, j, x % 2) : walk.row(x / 2); }
  RESCALED_MEMBER int key(int j, int x) const { return W::kByKeys ? walk.row(x / 2) : walk.column(first, j, x % 2); }
  RESCALED_MEMBER S log_weight(int j, int x) const { return masks.log_weight(query(j, x), key(j, x)); }
  RESCALED_MEMBER S dropout(int j, int x) const { return masks.dropout(query(j, x), key(j, x)); }
  RESCALED_MEMBER S tangent(int j, int x) const { return masks.tangent(query(j, x), key(j, x)); }
};

enum class Elements { plain, edge, any };
template <class W>
RESCALED_DEVICE Elements elements_of(const W& walk, const Elementwise<typename W::S>& masks, int first) {
  if (masks.is_any()) return Elements::any;
  const int last_row = walk.first_row + kWarpRows * walk.plan.warps - 1, last_column = first + W::kColumns - 1;
  const bool ends = last_row >= walk.row_count || last_column >= walk.column_count;
  const bool crosses = walk.p.causal && (W::kByKeys ? last_row > first : last_column > walk.first_row);
  return ends || crosses ? Elements::edge : Elements::plain;
}

template <class Tile>
RESCALED_DEVICE void copy_tile(Tile& to, const Tile& from) {
  constexpr int kTiles = sizeof(Tile) / sizeof(to[0]);
  RESCALED_UNROLL for (int j = 0; j < kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) to[j][x] = from[j][x];
}
template <class Function, size_t... n, class Tile, class... Tiles>
RESCALED_DEVICE void through_memory(Function f, std::index_sequence<n...>, Tile& first, Tiles&... others) {
  Tile copies[1 + sizeof...(Tiles)];
  copy_tile(copies[0], first);
  (copy_tile(copies[n + 1], others), ...);
  constexpr int kTiles = sizeof(Tile) / sizeof(first[0]);
  RESCALED_ROLLED for (int j = 0; j < kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x)
      f(j, x, copies[0][j][x], copies[n + 1][j][x]...);
  copy_tile(first, copies[0]);
  (copy_tile(others, copies[n + 1]), ...);
}

// Calls arithmetic(values, j, x, a[j][x], b[j][x], ...) for each element of a tile. Unrolled in registers, or in a loop
// through memory where it is rare and would be much code: masks, bias and dropout.
template <class W, class Arithmetic, class Tile, class... Tiles>
RESCALED_DEVICE void each_element(const W& walk, const Elementwise<typename W::S>& masks, int first, Elements which,
                                  Arithmetic arithmetic, Tile& tile, Tiles&... tiles) {
  using S = typename W::S;
  const auto unrolled = [&](const auto& values) {
    RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x)
        arithmetic(values, j, x, tile[j][x], tiles[j][x]...);
  };
  if (which == Elements::plain) {
    unrolled(NoValues<S>{});
  } else if (which == Elements::edge) {
    unrolled(edge_values(walk, first));
  } else {
    const AnyValues<W> values{walk, masks, first};
    const auto rolled = [&](int j, int x, auto&... elements) { arithmetic(values, j, x, elements...); };
    through_memory(rolled, std::make_index_sequence<sizeof...(Tiles)>{}, tile, tiles...);
  }
}

// What a query brings: log2 of its normalizer, the same as a power of two and a factor, and for the gradients the
// numbers of (3) and (5). The gradients' walks read them from arrays [batch][array][padded queries] of the workspace.
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

template <class S>
RESCALED_DEVICE S* query_numbers(const AttentionParameters& p, int64_t b, int array) {
  return static_cast<S*>(p.workspace) + (b * kQueryArrays + array) * padded_queries(p);
}
template <class S, class Number>
RESCALED_DEVICE QueryNumbers<S> numbers_from(Number number) {
  return {number(0), number(1), number(2), number(3), number(4), number(5), number(6)};
}

// a, r and with them n = odd, p = even, from a product of rows and log2(e) times the scale.
template <class S>
struct Weights {
  S even, odd, a, r;
};
template <class T, Kinds kKinds, class Values, class S>
RESCALED_DEVICE Weights<S> weights_of(Kind kind, S product, S scale, const Values& values, int j, int x,
                                      const QueryNumbers<S>& q) {
  Weights<S> w;
  constexpr bool weighted = Values::weighted;
  const S log_weight = values.log_weight(j, x);
  const S score = product * scale;  // in units of log 2
  if (kKinds == Kinds::exp || (kKinds == Kinds::all && kind == Kind::exp)) {
    w.even = w.odd = w.a = w.r = exp2_of(weighted ? (score + log_weight) - q.shift : score - q.shift);
  } else if constexpr (sizeof(T) == 2) {  // enough for 16 bits of output, and a fraction of the operations
    const S shift = (weighted ? q.shift - log_weight : q.shift) + S(1);
    const S up = exp2_of(score - shift), down = exp2_of(-score - shift);
    // Near 0, where the difference cancels, even tanh(ln(2) score).
    const S near = score * (S(6.931472e-1) - S(1.110082e-1) * (score * score));
    w.even = up + down, w.odd = absolute(score) < S(0.125) ? w.even * near : up - down;
    w.a = kind == Kind::sinh ? w.odd : w.even, w.r = kind == Kind::sinh ? w.even : w.odd;
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
