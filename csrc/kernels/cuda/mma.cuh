// SPDX-License-Identifier: BSD-3-Clause
// Products of tiles in shared memory by the tensor cores, one interface for every element type. A warp owns 16 rows;
// accumulators are 16 x 8 (ptx.cuh). Float32 is split into two TF32 numbers, three products each (3xTF32: the rounding
// of float32 but for the last bit); float64 has tensor cores of its own.
#pragma once
#include "ptx.cuh"

namespace rescaled {

// Fragments of 16 rows x kDepth (A) and kDepth x 16 columns (B).
//   load_a        A[i][k] = tile[i][k]
//   load_b        B[k][j] = tile[j][k]     the columns' own rows: scores
//   load_b_rows   B[k][j] = tile[k][j]     weights times rows, A from `weights`
//   weights       A from accumulators of 16 x kDepth
// Where an accumulator's columns are not the depth that A's layout wants (float, double), load_b_rows takes the depth
// in the order of the accumulator: a sum has no order in exact arithmetic, and needs no shuffles.
// kSwapped: A holds keys, not queries; the parts of a score are then added in the same order as with A and B exchanged.
template <class T>
struct Mma {  // BFloat16, Float16
  using Scalar = float;
  static constexpr int kDepth = 16, kPad = 8;
  struct A {
    uint32_t x[4];
  };
  struct B {
    uint32_t x[4];
  };
  RESCALED_DEVICE void load_a(A& a, const T* tile, int ld) {
    const int lane = thread_index() % 32;
    load_matrices<false>(a.x, tile + lane % 16 * ld + lane / 16 * 8);
  }
  RESCALED_DEVICE void load_b(B& b, const T* tile, int ld) {
    const int lane = thread_index() % 32;
    load_matrices<false>(b.x, tile + (lane / 16 * 8 + lane % 8) * ld + lane / 8 % 2 * 8);
  }
  RESCALED_DEVICE void load_b_rows(B& b, const T* tile, int ld) {
    const int lane = thread_index() % 32;
    load_matrices<true>(b.x, tile + (lane / 8 % 2 * 8 + lane % 8) * ld + lane / 16 * 8);
  }
  RESCALED_DEVICE void weights(A& a, const float (*w)[4]) {
    for (int i = 0; i < 4; ++i) a.x[i] = pack_pair<T>(w[i / 2][i % 2 * 2], w[i / 2][i % 2 * 2 + 1]);
  }
  template <bool kSwapped>
  RESCALED_DEVICE void multiply(float (*c)[4], const A& a, const B& b) {
    for (int j = 0; j < 2; ++j) multiply_16bit<T>(c[j], a.x, {b.x[2 * j], b.x[2 * j + 1]});
  }
};

template <>
struct Mma<float> {
  using Scalar = float;
  static constexpr int kDepth = 8, kPad = 4;
  struct A {
    float high[4], low[4];
  };
  struct B {
    float high[2][2], low[2][2];
  };
  RESCALED_DEVICE void split(float x, float& high, float& low) { high = to_tf32(x), low = to_tf32(x - high); }
  RESCALED_DEVICE void load_a(A& a, const float* tile, int ld) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4;
    for (int i = 0; i < 4; ++i) split(tile[(g + i % 2 * 8) * ld + t + i / 2 * 4], a.high[i], a.low[i]);
  }
  RESCALED_DEVICE void load_b(B& b, const float* tile, int ld) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4;
    for (int j = 0; j < 2; ++j)
      for (int i = 0; i < 2; ++i) split(tile[(8 * j + g) * ld + t + 4 * i], b.high[j][i], b.low[j][i]);
  }
  RESCALED_DEVICE void load_b_rows(B& b, const float* tile, int ld) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4;
    for (int j = 0; j < 2; ++j)
      for (int i = 0; i < 2; ++i) split(tile[(2 * t + i) * ld + 8 * j + g], b.high[j][i], b.low[j][i]);
  }
  RESCALED_DEVICE void weights(A& a, const float (*w)[4]) {
    for (int i = 0; i < 4; ++i) split(w[0][i % 2 * 2 + i / 2], a.high[i], a.low[i]);
  }
  // Tensor cores cut off what a sum has beyond 24 bits, so theirs begins at zero and is added by a rounding addition.
  // The parts of an infinity or a NaN make the corrections NaN: the product of the high parts is then the product.
  template <bool kSwapped>
  RESCALED_DEVICE void multiply(float (*c)[4], const A& a, const B& b) {
    for (int j = 0; j < 2; ++j) {
      float low[4] = {}, high[4] = {};
      multiply_tf32(low, kSwapped ? a.high : a.low, kSwapped ? b.low[j] : b.high[j]);
      multiply_tf32(low, kSwapped ? a.low : a.high, kSwapped ? b.high[j] : b.low[j]);
      multiply_tf32(high, a.high, b.high[j]);
      for (int i = 0; i < 4; ++i) {
        const float sum = high[i] + low[i];
        c[j][i] += sum == sum ? sum : high[i];
      }
    }
  }
};

template <>
struct Mma<double> {
  using Scalar = double;
  static constexpr int kDepth = 8, kPad = 4;
  struct A {
    double x[2][2];  // [step of 4][row + 8]
  };
  struct B {
    double x[2][2];  // [step of 4][column + 8]
  };
  RESCALED_DEVICE void load_a(A& a, const double* tile, int ld) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4;
    for (int s = 0; s < 2; ++s)
      for (int i = 0; i < 2; ++i) a.x[s][i] = tile[(g + 8 * i) * ld + 4 * s + t];
  }
  RESCALED_DEVICE void load_b(B& b, const double* tile, int ld) { load_a(reinterpret_cast<A&>(b), tile, ld); }
  RESCALED_DEVICE void load_b_rows(B& b, const double* tile, int ld) {
    const int g = thread_index() % 32 / 4, t = thread_index() % 4;
    for (int s = 0; s < 2; ++s)
      for (int j = 0; j < 2; ++j) b.x[s][j] = tile[(2 * t + s) * ld + 8 * j + g];
  }
  RESCALED_DEVICE void weights(A& a, const double (*w)[4]) {
    for (int s = 0; s < 2; ++s)
      for (int i = 0; i < 2; ++i) a.x[s][i] = w[0][2 * i + s];
  }
  template <bool kSwapped>
  RESCALED_DEVICE void multiply(double (*c)[4], const A& a, const B& b) {
    for (int j = 0; j < 2; ++j)
      for (int s = 0; s < 2; ++s)
        for (int i = 0; i < 2; ++i) multiply_f64(c[j][2 * i], c[j][2 * i + 1], a.x[s][i], b.x[s][j]);
  }
};

template <class T>
using Scalar = typename Mma<T>::Scalar;

// acc[j] += rows columns^T, over a depth that is a multiple of kDepth; rows: this warp's 16; columns: 8 kTiles.
template <class T, int kTiles, bool kSwapped>
RESCALED_DEVICE void multiply_rows(Scalar<T> (&acc)[kTiles][4], const T* rows, int row_ld, const T* columns,
                                   int column_ld, int depth) {
  using M = Mma<T>;
  RESCALED_ROLLED
  for (int k = 0; k < depth; k += M::kDepth) {
    typename M::A a;
    M::load_a(a, rows + k, row_ld);
    RESCALED_UNROLL
    for (int j = 0; j < kTiles; j += 2) {
      typename M::B b;
      M::load_b(b, columns + j * 8 * column_ld + k, column_ld);
      M::template multiply<kSwapped>(acc + j, a, b);
    }
  }
}

// out[j] += w columns, w: 16 x (8 kTiles) in accumulators; columns: 8 kTiles rows of `width`, at most 8 kOut.
template <class T, int kTiles, int kOut>
RESCALED_DEVICE void multiply_weights(Scalar<T> (&out)[kOut][4], const Scalar<T> (&w)[kTiles][4], const T* columns,
                                      int ld, int width) {
  using M = Mma<T>;
  RESCALED_UNROLL
  for (int k = 0; k < kTiles; k += M::kDepth / 8) {
    typename M::A a;
    M::weights(a, w + k);
    RESCALED_UNROLL
    for (int j = 0; j < kOut; j += 2) {
      if (8 * j < width) {
        typename M::B b;
        M::load_b_rows(b, columns + 8 * k * ld + 8 * j, ld);
        M::template multiply<false>(out + j, a, b);
      }
    }
  }
}

}  // namespace rescaled
