// SPDX-License-Identifier: BSD-3-Clause
// What the three gradient walks share: the products of a tile, and its elements' gradients in their place.
#pragma once
#include "walk.cuh"
#include "weights.cuh"

namespace rescaled {
namespace {

template <class S, class W>
RESCALED_DEVICE QueryNumbers<S> row_numbers(const W& walk, int64_t b, int half) {
  return numbers_from<S>([&](int array) { return query_number<S>(walk.p, b, array, walk.row(half)); });
}

template <class W>
struct GradientTile {
  // The products, then what the outputs take: value: a or ad; second: dS, or dS2 of the second pass; first: its dS.
  typename W::Scores value, second, first, tangent_e;
};

// `numbers(j, x)` are those of the query of element x of tile j.
template <Pass kPass, Kinds kKinds, class W, class Numbers>
RESCALED_DEVICE void gradient_tile(const W& walk, int stage, int64_t first, int parity, GradientTile<W>& tile,
                                   Numbers numbers) {
  using S = typename W::S;
  constexpr bool kSecond = is_second(kPass), kByKeys = W::kByKeys;
  walk.template product<kByKeys>(tile.value, 0, 0, stage, first, parity);
  walk.template product<kByKeys>(tile.second, 1, 1, stage, first, parity);
  if constexpr (kSecond) {
    walk.template product<kByKeys>(tile.first, 2, 0, stage, first, parity);
    walk.template product<kByKeys>(tile.first, 0, 2, stage, first, parity);
    walk.template product<kByKeys>(tile.tangent_e, kByKeys ? 3 : 1, kByKeys ? 1 : 3, stage, first, parity);
  }
  const Kind kind = walk.p.kind;
  const S scale = static_cast<S>(walk.p.scale * kLog2e), tangent_scale = static_cast<S>(walk.p.scale);
  ElementValues<S, W::kTiles> values;
  fill_values(walk, walk.problems[parity].masks, first, kSecond, values);
  RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
    const QueryNumbers<S> q = numbers(j, x);
    const Weights<S> w =
        weights_of<S, kKinds>(kind, tile.value[j][x] * scale, values.weighted, values.log_weight(j, x), q);
    const S score_tangent = kSecond ? tile.first[j][x] * tangent_scale : S(0);
    const ElementGradients<S> d =
        gradients_of<S, kKinds, kSecond>(kind, w, q, values.dropout(j, x), tile.second[j][x], score_tangent,
                                         kSecond ? tile.tangent_e[j][x] : S(0), kSecond ? values.tangent(j, x) : S(0));
    tile.value[j][x] = d.value;
    tile.second[j][x] = is_bias(kPass) ? d.bias : kSecond ? d.second : d.first;
    if constexpr (kSecond) tile.first[j][x] = d.first;
  }
}

}  // namespace
}  // namespace rescaled
