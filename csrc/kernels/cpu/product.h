// SPDX-License-Identifier: BSD-3-Clause
// Products of blocks: rows in memory times a packed panel.
#pragma once
#include "pair_product.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Depth of a packed panel that stays in the first-level cache (24 KB of 32 or 48) while all rows of a block pass by:
// without it, by count, two 48-lane panels of depth 128 would come from the second-level cache for every tile of rows.
template <class T>
inline constexpr int64_t kDepthBlock = 24 * 1024 / (kTileVectors * kVectorBytes);

// Lanes of a tile's rows from kVectors up to kWidth vectors: 0.
template <class T, int kVectors, int kWidth>
RESCALED_INLINE void clear_lanes(T* out) {
  RESCALED_UNROLL for (int i = 0; i < kTileRows; ++i) RESCALED_UNROLL for (int j = kVectors; j < kWidth; ++j)
      store<T>(out + (i * kWidth + j) * kLanes<T>, Vec<T>{});
}

// out[row][lane] (+)= a b, lanes from kVectors up to kWidth vectors 0; the sum over depth keeps its order across blocks
// of depth, so it has the same bits.
template <class T, int kVectors, int kWidth = kVectors>
static __attribute__((noinline)) void product_block(int64_t rows, int64_t depth, bool add, Rows<T> a, const T* b,
                                                    T* out) {
  constexpr int64_t lanes = kWidth * kLanes<T>;
  int64_t first = 0;
  do {
    const int64_t left = depth - first, count = left < kDepthBlock<T> ? left : kDepthBlock<T>;
    for (int64_t i = 0; i < rows; i += kTileRows) {
      Tile<T, kTileRows, kVectors> c;
      if (add || first > 0)
        tile_load<T, kTileRows, kVectors>(c, out + i * lanes, lanes);
      else
        tile_clear<T, kTileRows, kVectors>(c);
      multiply<T, kTileRows, kVectors, false>(count, a.data + i * a.ld + first, a.ld, b + first * lanes, lanes, c);
      tile_store<T, kTileRows, kVectors>(c, out + i * lanes, lanes);
      clear_lanes<T, kVectors, kWidth>(out + i * lanes);
    }
    first += count;
  } while (first < depth);
}

#if defined(__AVX512BF16__)
template <class E, int kVectors, int kWidth = kVectors>
static void product_block(int64_t rows, int64_t depth, bool add, Rows<Pair> a, const Pair* b, float* out) {
  static_assert(kWidth == kVectors);
  pair_product<kVectors>(round_up(rows, kTileRows), depth, add, a, b, kVectors * 16, out, kVectors * 16);
}
#endif

// out = a0 b0 + a1 b1, either product absent where a factor of it is. Both in one go where both panels stay.
template <class T, int kVectors, int kWidth = kVectors>
static __attribute__((noinline)) void product_sum(int64_t rows, int64_t depth, Rows<T> a0, const T* b0, Rows<T> a1,
                                                  const T* b1, Sum<T>* out) {
  constexpr int64_t lanes = kWidth * kLanes<Sum<T>>;
  const bool first = a0.data && b0, second = a1.data && b1;
  if constexpr (!kPairs<T>)
    if (first && second && 2 * depth <= kDepthBlock<T>) {
      for (int64_t i = 0; i < rows; i += kTileRows) {
        Tile<T, kTileRows, kVectors> c;
        tile_clear<T, kTileRows, kVectors>(c);
        multiply<T, kTileRows, kVectors, false>(depth, a0.data + i * a0.ld, a0.ld, b0, lanes, c);
        multiply<T, kTileRows, kVectors, false>(depth, a1.data + i * a1.ld, a1.ld, b1, lanes, c);
        tile_store<T, kTileRows, kVectors>(c, out + i * lanes, lanes);
        clear_lanes<T, kVectors, kWidth>(out + i * lanes);
      }
      return;
    }
  if (first) product_block<T, kVectors, kWidth>(rows, depth, false, a0, b0, out);
  if (second) product_block<T, kVectors, kWidth>(rows, depth, first, a1, b1, out);
  if (!first && !second) std::memset(out, 0, sizeof(Sum<T>) * round_up(rows, kTileRows) * lanes);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
