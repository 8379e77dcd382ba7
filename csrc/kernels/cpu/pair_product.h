// SPDX-License-Identifier: BSD-3-Clause
// Products of pairs of bfloat16, summed in float32: by tiles (TDPBF16PS) or by vectors (VDPBF16PS).
#pragma once
#include "pair.h"
#include "tile.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Pairs that a product over `depth` elements reads: a multiple of a tile's depth, or no more than there are.
#if defined(__AMX_BF16__)
constexpr int64_t kDepthStep = 16;
#else
constexpr int64_t kDepthStep = 1;
#endif
RESCALED_INLINE int64_t pairs_of(int64_t depth) { return round_up((depth + 1) / 2, kDepthStep); }

#if defined(__AMX_BF16__)
// Of which GCC's intrinsics that load tiles say nothing (12 to 14): without it stores before them are moved past them.
RESCALED_INLINE void memory_is_read() { asm volatile("" ::: "memory"); }

// Before products and after them, on their thread: eight tiles of 16 rows of 64 bytes. (Two functions, no destructor:
// one would bring a weak symbol, for exceptions that no kernel throws.)
RESCALED_INLINE void take_tiles() {
  struct alignas(64) Configuration {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  } c{};
  static_assert(sizeof c == 64);
  c.palette = 1;
  for (int i = 0; i < 8; ++i) c.row_bytes[i] = 64, c.rows[i] = 16;
  asm volatile("" ::"r"(&c) : "memory");
  _tile_loadconfig(&c);
}
RESCALED_INLINE void give_tiles_back() { _tile_release(); }

// 32 rows times kWide (1 or 2) vectors: tiles 0 to 3 are the sums, 4 and 5 rows of a, 6 and 7 of b.
template <int kWide>
RESCALED_INLINE void tile_product(int64_t depth, bool add, Rows<Pair> a, const Pair* b, int64_t ldb, float* out,
                                  int64_t ld) {
  const int64_t row = 4 * ld, a_row = 4 * a.ld, b_row = 4 * ldb;
  memory_is_read();
  if (add) {
    _tile_loadd(0, out, row);
    _tile_loadd(2, out + 16 * ld, row);
    if constexpr (kWide == 2) {
      _tile_loadd(1, out + 16, row);
      _tile_loadd(3, out + 16 * ld + 16, row);
    }
  } else {
    _tile_zero(0);
    _tile_zero(2);
    if constexpr (kWide == 2) {
      _tile_zero(1);
      _tile_zero(3);
    }
  }
  for (int64_t p = 0; p < depth; p += 16) {
    _tile_loadd(4, a.data + p, a_row);
    _tile_loadd(6, b + p * ldb, b_row);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kWide == 2) {
      _tile_loadd(7, b + p * ldb + 16, b_row);
      _tile_dpbf16ps(1, 4, 7);
    }
    _tile_loadd(5, a.data + 16 * a.ld + p, a_row);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kWide == 2) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, out, row);
  _tile_stored(2, out + 16 * ld, row);
  if constexpr (kWide == 2) {
    _tile_stored(1, out + 16, row);
    _tile_stored(3, out + 16 * ld + 16, row);
  }
}

// out[rows][kVectors vectors] (+)= a b with b [depth][kVectors vectors]; rows of a multiple of kTileRows, depth of
// kDepthStep.
template <int kVectors>
static __attribute__((noinline)) void pair_product(int64_t rows, int64_t depth, bool add, Rows<Pair> a, const Pair* b,
                                                   int64_t ldb, float* out, int64_t ld) {
  for (int64_t i = 0; i < rows; i += kTileRows) {
    RESCALED_UNROLL for (int j = 0; j + 2 <= kVectors; j += 2)
        tile_product<2>(depth, add, after(a, i), b + j * 16, ldb, out + i * ld + j * 16, ld);
    if constexpr (kVectors % 2 == 1)
      tile_product<1>(depth, add, after(a, i), b + (kVectors - 1) * 16, ldb, out + i * ld + (kVectors - 1) * 16, ld);
  }
}
#else
RESCALED_INLINE void take_tiles() {}
RESCALED_INLINE void give_tiles_back() {}

#if defined(__AVX512BF16__)
// c[i][:] += sum_p a(i, p) b(p, :) as in tile.h, two products a step.
template <class E, int kRows, int kVectors, bool kTransposed>
RESCALED_INLINE void multiply(int64_t depth, const Pair* __restrict a, int64_t lda, const Pair* __restrict b,
                              int64_t ldb, Tile<float, kRows, kVectors>& c) {
  for (int64_t p = 0; p < depth; ++p) {
    PairVector row[kVectors];
    RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) row[j] = _mm512_loadu_si512(b + p * ldb + j * 16);
    RESCALED_UNROLL for (int i = 0; i < kRows; ++i) {
      const PairVector x = _mm512_set1_epi32(static_cast<int>(a[kTransposed ? p * lda + i : i * lda + p].bits));
      RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) c[i][j] =
          (FloatVector)_mm512_dpbf16_ps((__m512)c[i][j], (__m512bh)x, (__m512bh)row[j]);
    }
  }
}

template <int kVectors>
static __attribute__((noinline)) void pair_product(int64_t rows, int64_t depth, bool add, Rows<Pair> a, const Pair* b,
                                                   int64_t ldb, float* out, int64_t ld) {
  for (int64_t i = 0; i < rows; i += kTileRows) {
    Tile<float, kTileRows, kVectors> c;
    if (add)
      tile_load<float, kTileRows, kVectors>(c, out + i * ld, ld);
    else
      tile_clear<float, kTileRows, kVectors>(c);
    multiply<Pair, kTileRows, kVectors, false>(depth, a.data + i * a.ld, a.ld, b, ldb, c);
    tile_store<float, kTileRows, kVectors>(c, out + i * ld, ld);
  }
}
#endif
#endif

}  // namespace
}  // namespace rescaled::RESCALED_ISA
