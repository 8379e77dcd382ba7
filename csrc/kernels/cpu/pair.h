// SPDX-License-Identifier: BSD-3-Clause
// bfloat16 as factors of products: pairs of neighbors along the summed index, which the dot instructions multiply and
// add in float32. Packing zero-fills what rounding sizes up adds.
//
// VDPBF16PS and TDPBF16PS take denormals for 0, round to nearest and have no invalid operands to report. Both treat
// their factors alike, so that a score has the same bits whichever side is broadcast.
#pragma once
#include "convert.h"

namespace rescaled::RESCALED_ISA {
namespace {

struct Pair {
  uint32_t bits;
};

// The type that products of factors E are summed in, and that all else is computed in.
template <class E>
struct SumOf {
  using Type = E;
};
template <>
struct SumOf<Pair> {
  using Type = float;
};
template <class E>
using Sum = typename SumOf<E>::Type;
template <class E>
inline constexpr bool kPairs = std::is_same_v<E, Pair>;
// Are products of E by tiles of memory, not by the register tiles of tile.h?
#if defined(__AMX_BF16__)
template <class E>
inline constexpr bool kByTiles = kPairs<E>;
#else
template <class E>
inline constexpr bool kByTiles = false;
#endif

constexpr int64_t kPairColumns = 32;  // a vector of pairs, and the depth of a tile
// Of `depth` elements: how many factors E they take, and how many of them products need.
template <class E>
RESCALED_INLINE int64_t depth_of(int64_t depth) {
  return kPairs<E> ? round_up(depth, kPairColumns) / 2 : depth;
}

#if defined(__AVX512BF16__)
typedef __m512i PairVector;
static_assert(kLanes<float> == 16);

// 16 pairs of a matrix of bfloat16, 0 outside of it: neighbors in row `i` from column 2 j on, or (kAcross) rows 2 i and
// 2 i + 1 in columns j to j + 15.
static __attribute__((noinline)) PairVector load_apart(const BFloat16* from, int64_t count, int64_t stride) {
  alignas(64) uint16_t to[32] = {};
  for (int64_t x = 0; x < count; ++x) to[x] = from[x * stride].bits;
  return _mm512_load_si512(to);
}
template <bool kAcross>
RESCALED_INLINE PairVector load_pairs(InputView m, int64_t rows, int64_t columns, int64_t i, int64_t j) {
  constexpr int count = kAcross ? 16 : 32;
  const auto row = [&](int64_t r, int64_t first) {  // `count` elements
    const int64_t left = r < rows ? columns - first : 0, there = left < 0 ? 0 : left < count ? left : count;
    const auto* from = static_cast<const BFloat16*>(m.data) + r * m.row + first * m.column;
    const auto mask = static_cast<__mmask32>((uint64_t{1} << there) - 1);
    return m.column == 1 ? _mm512_maskz_loadu_epi16(mask, from) : load_apart(from, there, m.column);
  };
  if constexpr (!kAcross) return row(i, 2 * j);
  const PairVector even = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(row(2 * i, j))),
                   odd = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(row(2 * i + 1, j)));
  return _mm512_or_si512(even, _mm512_slli_epi32(odd, 16));
}

// to[i][j] = pair (i, j) of the matrix, for whole vectors that cover [count][ld_count].
template <bool kAcross>
static void pack_pairs(InputView m, int64_t rows, int64_t columns, int64_t count, int64_t width, Pair* to, int64_t ld) {
  for (int64_t i = 0; i < count; ++i)
    for (int64_t j = 0; j < width; j += 16)
      _mm512_storeu_si512(to + i * ld + j, load_pairs<kAcross>(m, rows, columns, i, j));
}
// to[j][i] = pair (i, j), for i < count and j < height, both multiples of 16.
template <bool kAcross>
static void pack_pairs_transposed(InputView m, int64_t rows, int64_t columns, int64_t count, int64_t height, Pair* to,
                                  int64_t ld) {
  for (int64_t i = 0; i < count; i += 16)
    for (int64_t j = 0; j < height; j += 16) {
      FloatVector x[16];
      RESCALED_UNROLL for (int r = 0; r < 16; ++r) x[r] = (FloatVector)load_pairs<kAcross>(m, rows, columns, i + r, j);
      transpose_square<float>(x);
      RESCALED_UNROLL for (int r = 0; r < 16; ++r) _mm512_storeu_si512(to + (j + r) * ld + i, (PairVector)x[r]);
    }
}

// 32 numbers to bfloat16, to nearest, ties to even: neighbors x, y in one vector; or as pairs (x, y), lane by lane.
RESCALED_INLINE PairVector join(FloatVector x, FloatVector y) {
  return (PairVector)_mm512_cvtne2ps_pbh((__m512)y, (__m512)x);
}
RESCALED_INLINE PairVector join_lanes(FloatVector x, FloatVector y) {
  const PairVector lanes = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                            21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return _mm512_permutexvar_epi16(lanes, join(x, y));
}
// A block [rows][kVectors vectors] to pairs along its rows, [padded / 2][kVectors vectors].
template <int kVectors>
static void pair_rows(int64_t rows, int64_t padded, const float* from, Pair* to) {
  constexpr int64_t lanes = kVectors * 16;
  for (int64_t r = 0; r < padded; r += 2) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const float* at = from + r * lanes + j * 16;
      const FloatVector zero = {}, x = r < rows ? load(at) : zero, y = r + 1 < rows ? load(at + lanes) : zero;
      _mm512_storeu_si512(to + r / 2 * lanes + j * 16, join_lanes(x, y));
    }
}

static __attribute__((noinline)) void store_apart(__m256i x, int64_t count, BFloat16* to, int64_t stride) {
  alignas(32) uint16_t bits[16];
  _mm256_store_si256(reinterpret_cast<__m256i*>(bits), x);
  for (int64_t i = 0; i < count; ++i) to[i * stride].bits = bits[i];
}
// m[i][j] = factor * from[j][i], bfloat16
static void unpack_transposed_bfloat16(OutputView m, int64_t rows, int64_t columns, float factor, const float* from,
                                       int64_t lanes) {
  auto* const to = static_cast<BFloat16*>(m.data);
  for (int64_t i = 0; i < rows; i += 16)
    for (int64_t j = 0; j < columns; j += 16) {
      const int64_t left = columns - j, wide = left < 16 ? left : 16;
      FloatVector x[16] = {};
      RESCALED_UNROLL for (int r = 0; r < 16; ++r) if (r < wide) x[r] = factor * load(from + (j + r) * lanes + i);
      transpose_square<float>(x);
      RESCALED_UNROLL for (int r = 0; r < 16; ++r) if (i + r < rows) {
        const __m256i y = (__m256i)_mm512_cvtneps_pbh((__m512)x[r]);
        BFloat16* const row = to + (i + r) * m.row + j * m.column;
        if (m.column == 1)
          _mm256_mask_storeu_epi16(row, static_cast<__mmask16>((1u << wide) - 1), y);
        else
          store_apart(y, wide, row, m.column);
      }
    }
}
#endif

}  // namespace
}  // namespace rescaled::RESCALED_ISA
