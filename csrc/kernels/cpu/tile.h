// SPDX-License-Identifier: BSD-3-Clause
// The register-tile product that every matrix product here is made of.
#pragma once
#include "simd.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T, int Rows, int Vectors>
using Tile = Vec<T>[Rows][Vectors];

// c[i][:] += sum_p a(i, p) b(p, :), a(i, p) = Transposed ? a[p lda + i] : a[i lda + p].
//
// In ascending p, each step one fused multiply-add (a product and a sum where there is none, as in x86-64's baseline):
// a score has the same bits whichever operand is broadcast and whichever tile it sits in.
template <class T, int Rows, int Vectors, bool Transposed>
RESCALED_INLINE void multiply(int64_t depth, const T* __restrict a, int64_t lda, const T* __restrict b, int64_t ldb,
                              Tile<T, Rows, Vectors>& c) {
  for (int64_t p = 0; p < depth; ++p) {
    Vec<T> row[Vectors];
    RESCALED_UNROLL for (int j = 0; j < Vectors; ++j) row[j] = load(b + p * ldb + j * kLanes<T>);
    RESCALED_UNROLL for (int i = 0; i < Rows; ++i) {
      const Vec<T> x = broadcast(Transposed ? a[p * lda + i] : a[i * lda + p]);
      RESCALED_UNROLL for (int j = 0; j < Vectors; ++j) c[i][j] += x * row[j];
    }
  }
}

template <class T, int Rows, int Vectors>
RESCALED_INLINE void tile_clear(Tile<T, Rows, Vectors>& c) {
  RESCALED_UNROLL for (int i = 0; i < Rows; ++i) RESCALED_UNROLL for (int j = 0; j < Vectors; ++j) c[i][j] = Vec<T>{};
}
template <class T, int Rows, int Vectors>
RESCALED_INLINE void tile_load(Tile<T, Rows, Vectors>& c, const T* p, int64_t ld) {
  RESCALED_UNROLL for (int i = 0; i < Rows; ++i) RESCALED_UNROLL for (int j = 0; j < Vectors; ++j) c[i][j] =
      load(p + i * ld + j * kLanes<T>);
}
template <class T, int Rows, int Vectors>
RESCALED_INLINE void tile_store(Tile<T, Rows, Vectors>& c, T* p, int64_t ld) {
  RESCALED_UNROLL for (int i = 0; i < Rows; ++i) RESCALED_UNROLL for (int j = 0; j < Vectors; ++j)
      store(p + i * ld + j * kLanes<T>, c[i][j]);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
