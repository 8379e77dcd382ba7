// SPDX-License-Identifier: BSD-3-Clause
// What forward and forward with tangents share: scores of a block of keys against an online reference per query.
#pragma once
#include <cmath>

#include "panel.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class E, class T = Sum<E>>
struct ForwardPanel {
  E* query;                             // [D][lanes]
  T* output;                            // [Dv][lanes]
  T *reference, *normalizer, *balance;  // [lanes]; all sums are relative to 2^reference
};

template <class E>
RESCALED_INLINE ForwardPanel<E> take_panel(const AttentionParameters& p, Arena& arena) {
  constexpr int64_t lanes = kPanel<E>;
  using T = Sum<E>;
  return {arena.take<E>(depth_of<E>(p.head_size) * lanes), arena.take<T>(round_up(p.value_size, kTileRows) * lanes),
          arena.take<T>(lanes), arena.take<T>(lanes), arena.take<T>(lanes)};
}
template <class E>
static void start_panel(const AttentionParameters& p, const Problem& problem, int64_t first, int64_t count,
                        ForwardPanel<E>& panel) {
  using T = Sum<E>;
  const int64_t lanes = panel_lanes<E>(count);
  pack_panel<E>(from_row(problem.query, first), count, p.head_size, packed_scale<E>(p), panel.query, lanes);
  std::memset(panel.output, 0, sizeof(T) * round_up(p.value_size, kTileRows) * lanes);
  for (int64_t x = 0; x < lanes; ++x)
    panel.reference[x] = -static_cast<T>(__builtin_inf()), panel.normalizer[x] = panel.balance[x] = 0;
}
// 1 / normalizer of a vector of queries; 0 for a row without keys.
template <class E, class T = Sum<E>>
RESCALED_INLINE Vec<T> inverse_normalizer(const ForwardPanel<E>& panel, int64_t lane) {
  const Vec<T> n = load(panel.normalizer + lane), zero = {};
  return n == zero ? zero : T(1) / n;
}
template <class E>
static void finish_panel(const AttentionParameters& p, int64_t b, int64_t first, int64_t count,
                         const ForwardPanel<E>& panel) {
  using T = Sum<E>;
  const int64_t lanes = panel_lanes<E>(count);
  const OutputView output = matrix(p.output, p, b), balance = matrix(p.balance, p, b),
                   log_normalizer = matrix(p.log_normalizer, p, b);
  for (int64_t x = 0; x < lanes; x += kLanes<T>) {
    const Vec<T> inverse = inverse_normalizer<E>(panel, x);
    for (int64_t d = 0; d < p.value_size; ++d)
      store<T>(panel.output + d * lanes + x, load(panel.output + d * lanes + x) * inverse);
  }
  unpack_panel<E>(row_of(output, first), count, p.value_size, T(1), panel.output, lanes);
  for (int64_t i = 0; i < count; ++i) {
    const T n = panel.normalizer[i];
    const T one = n == T(0) ? T(0) : T(1) + (n - n);  // NaN where the normalizer is not finite
    static_cast<T*>(balance.data)[(first + i) * balance.row] =
        n != T(0) && p.kind == Kind::sinh ? panel.balance[i] * (T(1) / n) : one;
    static_cast<T*>(log_normalizer.data)[(first + i) * log_normalizer.row] =
        static_cast<T>(n == T(0) ? -__builtin_inf() : double{panel.reference[i]} * kLn2 + std::log(double{n}));
  }
}

// The maximum of a tile's rows as a tree, whose depth and not length is waited for.
template <class T, bool kTwoSided, int kVectors>
RESCALED_INLINE void highest_of(const Tile<T, kTileRows, kVectors>& c, Vec<T>* highest) {
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    Vec<T> x[kTileRows];
    RESCALED_UNROLL for (int r = 0; r < kTileRows; ++r) x[r] = kTwoSided ? absolute(c[r][j]) : c[r][j];
    RESCALED_UNROLL for (int half = kTileRows / 2; half > 0; half /= 2) RESCALED_UNROLL for (int r = 0; r < half; ++r)
        x[r] = maximum(x[r], x[r + half]);
    highest[j] = maximum(highest[j], x[0]);
  }
}

// The scores of a block, and their maximum (two-sided: of their absolute value) into `top`.
template <class E, bool kTwoSided, int kVectors, class T = Sum<E>>
static __attribute__((noinline)) void score_block(int64_t rows, int64_t depth, Rows<E> key, const E* query,
                                                  [[maybe_unused]] T scale, T* scores, Vec<T>* top) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  Vec<T> highest[kVectors];
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) highest[j] = top[j];
  const auto take = [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
        Vec<T> s = load(scores + r * lanes + j * kLanes<T>);
        if constexpr (kByTiles<E>) store<T>(scores + r * lanes + j * kLanes<T>, s = scaled<E>(scale, s));
        highest[j] = maximum(highest[j], kTwoSided ? absolute(s) : s);
      }
  };
  if constexpr (kByTiles<E>) {
    for (int64_t i = 0; i < rows; i += kTileRows) {  // a few rows at a time, so that they are still near
      const int64_t left = rows - i, count = left < kTileRows ? left : kTileRows;
      product_block<E, kVectors>(count, depth, false, after(key, i), query, scores + i * lanes);
      take(i, i + count);
    }
  } else {
    // Rows whose maximum is taken in their tile. Beside the accumulators the maxima have registers left with AVX-512 (1
    // % faster than a pass of their own), with AVX2 not (2 % slower). Not those of a last tile, which has rows of
    // padding.
    const int64_t in_tile = kVectorBytes == 64 ? rows / kTileRows * kTileRows : 0;
    for (int64_t i = 0; i < rows; i += kTileRows) {
      Tile<T, kTileRows, kVectors> c;
      tile_clear<T, kTileRows, kVectors>(c);
      multiply<E, kTileRows, kVectors, false>(depth, key.data + i * key.ld, key.ld, query, lanes, c);
      RESCALED_UNROLL for (int r = 0; r < kTileRows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) c[r][j] =
          scaled<E>(scale, c[r][j]);
      tile_store<T, kTileRows, kVectors>(c, scores + i * lanes, lanes);
      if (i < in_tile) highest_of<T, kTwoSided, kVectors>(c, highest);
    }
    take(in_tile, rows);
  }
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) top[j] = highest[j];
}

// Adds the log weights (two-sided: keeps them apart, they do not belong inside cosh) and takes the maximum anew.
template <class T, bool kTwoSided, int kVectors>
static __attribute__((noinline)) void weigh_block(int64_t rows, const T* weights, T* scores, Vec<T>* top) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  for (int64_t r = 0; r < rows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t at = r * lanes + j * kLanes<T>;
      const Vec<T> s = load(scores + at), w = load(weights + at);
      if (!kTwoSided) store<T>(scores + at, s + w);
      top[j] = maximum(top[j], kTwoSided ? absolute(s) + w : s + w);
    }
}

// The scores of a block against a panel, its log weights where it has them, and the new reference: `reference`, finite,
// beside 2^(old - new) in `correction`.
template <class E, bool kTwoSided, int kVectors, class T = Sum<E>>
static void refer(const AttentionParameters& p, const Problem& problem, Block block, bool has_weights, Rows<E> key,
                  const E* query, T* panel_reference, T* scores, T* weights, Vec<T>* reference, Vec<T>* correction) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  const T infinity = static_cast<T>(__builtin_inf());
  const int64_t depth = depth_of<E>(p.head_size);
  Vec<T> top[kVectors];
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) reference[j] = top[j] = load(panel_reference + j * kLanes<T>);
  if (has_weights) {
    Vec<T> unused[kVectors] = {};
    score_block<E, kTwoSided, kVectors>(block.rows, depth, key, query, score_scale<E>(p), scores, unused);
    fill_log_weights<T, Lanes::queries>(p, problem.bias, problem.mask, block, weights, lanes);
    weigh_block<T, kTwoSided, kVectors>(block.rows, weights, scores, top);
  } else {
    score_block<E, kTwoSided, kVectors>(block.rows, depth, key, query, score_scale<E>(p), scores, top);
  }
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    if (kTwoSided) top[j] = round_to_integer<T>(top[j] + T(0.5));  // integral: 2^t and 2^-t are scaled exactly
    const Vec<T> finite =
        top[j] == -infinity ? Vec<T>{} : top[j];  // nothing attended yet: every weight is 0 against any reference
    correction[j] = exp2_vector<T>(reference[j] - finite);
    store<T>(panel_reference + j * kLanes<T>, top[j]);
    reference[j] = finite;
  }
}

// A score's weight a c 2^-reference; `weights`: its log weights, where it has them. Adds to the sums.
template <class T, bool kTwoSided>
RESCALED_INLINE Vec<T> exponentiate(bool odd_kind, Vec<T> score, const T* weights, Vec<T> reference, Vec<T>& normalizer,
                                    Vec<T>& balance) {
  if constexpr (!kTwoSided) {
    const Vec<T> a = exp2_vector<T>(score - reference);
    normalizer += a;
    return a;
  } else {
    Vec<T> even, odd;
    if (weights) {
      const Weight<T> weight = split_weight<T>(load(weights) - reference);
      two_sided<T>(score, weight.exponent, even, odd);
      even *= weight.factor, odd *= weight.factor;
    } else {
      two_sided<T>(score, -reference, even, odd);
    }
    normalizer += even, balance += odd;
    return odd_kind ? odd : even;
  }
}

// Scores to weights, in place or as pairs of rows; their sums relative to 2^-reference.
template <class E, bool kTwoSided, int kVectors, class T = Sum<E>>
static __attribute__((noinline)) void exponentiate_block(bool odd_kind, int64_t rows, const T* weights,
                                                         const Vec<T>* reference, T* scores, [[maybe_unused]] E* pairs,
                                                         Vec<T>* normalizer, Vec<T>* balance) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  Vec<T> shift[kVectors], sum[kVectors] = {},
                          odd_sum[kVectors] = {};  // in registers: the stores below may alias anything
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) shift[j] = reference[j];
  const auto weight = [&](int64_t r, int j) {
    const int64_t at = r * lanes + j * kLanes<T>;
    return exponentiate<T, kTwoSided>(odd_kind, load(scores + at), weights ? weights + at : nullptr, shift[j], sum[j],
                                      odd_sum[j]);
  };
  int64_t r = 0;
#if defined(__AVX512BF16__)
  if (pairs) {
    const auto put = [&](int64_t at, int j, Vec<T> x, Vec<T> y) {
      _mm512_storeu_si512(pairs + at / 2 * lanes + j * kLanes<T>, join_lanes(x, y));
    };
    for (; r + 2 <= rows; r += 2) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
        const Vec<T> x = weight(r, j);
        put(r, j, x, weight(r + 1, j));
      }
    for (const int64_t padded = 2 * depth_of<E>(rows); r < padded; r += 2)
      RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) put(r, j, r < rows ? weight(r, j) : Vec<T>{}, Vec<T>{});
  }
#endif
  for (; r < rows; ++r)
    RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) store<T>(scores + r * lanes + j * kLanes<T>, weight(r, j));
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) normalizer[j] = sum[j], balance[j] = odd_sum[j];
}

// A block's weights in `scores` (or `pairs`, where they are wanted), relative to the panel's new reference, and its
// sums with them; 2^(old - new reference) in `correction`. Does the block have log weights? They are in `weights`.
template <class E, bool kTwoSided, int kVectors, class T = Sum<E>>
static bool weigh_online(const AttentionParameters& p, const Problem& problem, Block block, Rows<E> key,
                         ForwardPanel<E>& panel, T* scores, T* weights, Vec<T>* correction, E* pairs = nullptr) {
  Vec<T> reference[kVectors], normalizer[kVectors], balance[kVectors];
  const bool has_weights = weighted(p, block.query, block.key + block.rows - 1);
  refer<E, kTwoSided, kVectors>(p, problem, block, has_weights, key, panel.query, panel.reference, scores, weights,
                                reference, correction);
  exponentiate_block<E, kTwoSided, kVectors>(p.kind == Kind::sinh, block.rows, has_weights ? weights : nullptr,
                                             reference, scores, pairs, normalizer, balance);
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    T *n = panel.normalizer + j * kLanes<T>, *b = panel.balance + j * kLanes<T>;
    store<T>(n, load(n) * correction[j] + normalizer[j]);
    if (kTwoSided) store<T>(b, load(b) * correction[j] + balance[j]);
  }
  return has_weights;
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
