// SPDX-License-Identifier: BSD-3-Clause
// What the three gradient walks share: the products of a tile, and its elements' gradients in their place.
#pragma once
#include "walk.cuh"
#include "weights.cuh"

namespace rescaled {
namespace {

template <class S, class W>
RESCALED_DEVICE QueryNumbers<S> row_numbers(const W& walk, int64_t b, int half) {
  const int query = least(walk.row(half), static_cast<int>(padded_queries(walk.p)) - 1);
  return numbers_from<S>([&](int array) { return query_numbers<S>(walk.p, b, array)[query]; });
}

template <class W>
struct GradientTile {
  // The products, then what the outputs take: value: a or ad; second: dS, or dS2 of the second pass; first: its dS.
  typename W::Scores value, second, first, tangent_e;
};

// `numbers(j, x)` are those of the query of element x of tile j.
template <class T, Pass kPass, Kinds kKinds, class W, class Numbers, class Next>
RESCALED_DEVICE void gradient_tile(const W& walk, int stage, int first, int parity, GradientTile<W>& tile,
                                   Numbers numbers, Next next) {
  using S = typename W::S;
  constexpr bool kSecond = is_second(kPass), kByKeys = W::kByKeys;
  walk.begin_products();
  walk.template product<kByKeys>(tile.value, 0, 0, stage, first, parity);
  walk.template product<kByKeys>(tile.second, 1, 1, stage, first, parity);
  if constexpr (kSecond) {
    walk.template product<kByKeys>(tile.first, 2, 0, stage, first, parity);
    walk.template product<kByKeys, true>(tile.first, 0, 2, stage, first, parity);
    walk.template product<kByKeys>(tile.tangent_e, kByKeys ? 3 : 1, kByKeys ? 1 : 3, stage, first, parity);
  }
  walk.end_products();
  next.load();
  walk.settle();
  const Kind kind = walk.p.kind;
  const S scale = static_cast<S>(walk.p.scale * kLog2e), tangent_scale = static_cast<S>(walk.p.scale);
  const auto weigh = [&](const auto& values, int j, int x, S& value, S& second, S& first_product, S& tangent_e) {
    const QueryNumbers<S> q = numbers(j, x);
    const Weights<S> w = weights_of<T, kKinds>(kind, value, scale, values, j, x, q);
    const S drop = values.dropout(j, x), bias_tangent = kSecond ? values.tangent(j, x) : S(0);
    const ElementGradients<S> d = gradients_of<S, kKinds, kSecond>(
        kind, w, q, drop, second, first_product * tangent_scale, tangent_e, bias_tangent);
    value = d.value, second = is_bias(kPass) ? d.bias : kSecond ? d.second : d.first, first_product = d.first;
  };
  const Elementwise<S>& masks = walk.problems[parity].masks;
  const Elements which = elements_of(walk, masks, first);
  if constexpr (kSecond) {
    each_element(walk, masks, first, which, weigh, tile.value, tile.second, tile.first, tile.tangent_e);
  } else {
    const auto weigh_first = [&](const auto& values, int j, int x, S& value, S& second) {
      S zero = 0;
      weigh(values, j, x, value, second, zero, zero);
    };
    each_element(walk, masks, first, which, weigh_first, tile.value, tile.second);
  }
  next.announce();
}

}  // namespace
}  // namespace rescaled
