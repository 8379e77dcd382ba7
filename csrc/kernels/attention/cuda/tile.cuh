// SPDX-License-Identifier: BSD-3-Clause
// Tiles of global memory in shared memory, single numbers, sums over a row.
#pragma once
#include "../../cuda/mma.cuh"
#include "../../cuda/scalar.cuh"
#include "plan.h"

namespace rescaled {
namespace {

// to[r][c] = m[first_row + r][first_column + c], 0 beyond `rows` and `columns`; c up to a multiple of 16. All threads
// of the block; whoever reads it commits, waits and synchronizes first.
template <class T>
RESCALED_DEVICE void load_tile(T* to, int ld, int tile_rows, InputView m, int64_t first_row, int64_t rows,
                               int64_t first_column, int64_t columns) {
  constexpr int kVector = 16 / sizeof(T);
  const int vectors = static_cast<int>(round_up(columns, 16)) / kVector, count = tile_rows * vectors;
  const T* from = static_cast<const T*>(m.data) + first_row * m.row + first_column * m.column;
  const bool whole = m.column == 1 && m.row % kVector == 0 && bits_as<uint64_t>(from) % 16 == 0;
  RESCALED_ROLLED for (int v = thread_index(); v < count; v += block_threads()) {
    const int r = v / vectors, c = v % vectors * kVector;
    T* out = to + r * ld + c;
    const T* in = from + r * m.row + c * m.column;
    const bool there = first_row + r < rows;
    if (whole && there && c + kVector <= columns) {
      copy_async(out, in);
    } else {
      RESCALED_ROLLED for (int i = 0; i < kVector; ++i) out[i] = there && c + i < columns ? in[i * m.column] : T{};
    }
  }
}

template <class S>
RESCALED_DEVICE S number_at(InputView m, int64_t offset) {  // bias and its tangent: the operands' type, or float32
  switch (m.dtype) {
    case DType::float32:
      return static_cast<S>(static_cast<const float*>(m.data)[offset]);
    case DType::float64:
      return static_cast<S>(static_cast<const double*>(m.data)[offset]);
    case DType::bfloat16:
      return static_cast<S>(value_of(static_cast<const BFloat16*>(m.data)[offset]));
    default:
      return static_cast<S>(value_of(static_cast<const Float16*>(m.data)[offset]));
  }
}
template <class S>
RESCALED_DEVICE void store_at(OutputView m, int64_t offset, S x) {
  switch (m.dtype) {
    case DType::float32:
      static_cast<float*>(m.data)[offset] = static_cast<float>(x);
      break;
    case DType::float64:
      static_cast<double*>(m.data)[offset] = x;
      break;
    case DType::bfloat16:
      assign(static_cast<BFloat16*>(m.data)[offset], static_cast<float>(x));
      break;
    default:
      assign(static_cast<Float16*>(m.data)[offset], static_cast<float>(x));
  }
}

// Over the 4 lanes that share a row of the accumulators.
template <class S>
RESCALED_DEVICE S row_sum(S x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}
template <class S>
RESCALED_DEVICE S row_max(S x) {
  x = greater(x, shuffle_xor(x, 1));
  return greater(x, shuffle_xor(x, 2));
}

}  // namespace
}  // namespace rescaled
