// SPDX-License-Identifier: BSD-3-Clause
// Products of tiles by the tensor cores in chains: float32's (3xTF32, mma.cuh) are summed by them over a depth of
// kChainDepth, where what they cut off is still less than what float32 rounds, before a rounding addition.
#pragma once
#include "../../cuda/mma.cuh"

namespace rescaled {
namespace {

constexpr int kChainDepth = 32;

// c += high + low. The parts of an infinity or a NaN make `low` NaN: the product of the high parts is then the product.
RESCALED_DEVICE void add_chain(float (&c)[4], const float (&high)[4], const float (&low)[4]) {
  RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
    const float sum = high[x] + low[x];
    c[x] += sum == sum ? sum : high[x];
  }
}
template <bool kSwapped>
RESCALED_DEVICE void multiply_split(float (&high)[4], float (&low)[4], const Mma<float>::A& a, const Mma<float>::B& b,
                                    int j) {
  multiply_tf32(low, kSwapped ? a.high : a.low, kSwapped ? b.low[j] : b.high[j]);
  multiply_tf32(low, kSwapped ? a.low : a.high, kSwapped ? b.high[j] : b.low[j]);
  multiply_tf32(high, a.high, b.high[j]);
}

// As multiply_rows and multiply_weights of mma.cuh.
template <int kTiles, bool kSwapped>
RESCALED_DEVICE void chain_rows(float (&acc)[kTiles][4], const float* rows, int row_ld, const float* columns,
                                int column_ld, int depth) {
  using M = Mma<float>;
  RESCALED_ROLLED for (int first = 0; first < depth; first += kChainDepth) {
    float high[kTiles][4] = {}, low[kTiles][4] = {};
    const int end = first + kChainDepth < depth ? first + kChainDepth : depth;
    RESCALED_ROLLED for (int k = first; k < end; k += M::kDepth) {
      typename M::A a;
      M::load_a(a, rows + k, row_ld);
      RESCALED_UNROLL for (int j = 0; j < kTiles; j += 2) {
        typename M::B b;
        M::load_b(b, columns + j * 8 * column_ld + k, column_ld);
        RESCALED_UNROLL for (int i = 0; i < 2; ++i) multiply_split<kSwapped>(high[j + i], low[j + i], a, b, i);
      }
    }
    RESCALED_UNROLL for (int j = 0; j < kTiles; ++j) add_chain(acc[j], high[j], low[j]);
  }
}
template <int kTiles, bool kSwapped>
RESCALED_DEVICE void chain_rows(double (&acc)[kTiles][4], const double* rows, int row_ld, const double* columns,
                                int column_ld, int depth) {
  multiply_rows<double, kTiles, kSwapped>(acc, rows, row_ld, columns, column_ld, depth);
}

template <int kTiles, int kOut>
RESCALED_DEVICE void chain_weights(float (&out)[kOut][4], const float (&w)[kTiles][4], const float* columns, int ld,
                                   int width) {
  using M = Mma<float>;
  static_assert(8 * kTiles <= kChainDepth && M::kDepth == 8);
  typename M::A a[kTiles];
  RESCALED_UNROLL for (int k = 0; k < kTiles; ++k) M::weights(a[k], w + k);
  RESCALED_UNROLL for (int j = 0; j < kOut; j += 2) {
    if (8 * j >= width) continue;
    float high[2][4] = {}, low[2][4] = {};
    RESCALED_UNROLL for (int k = 0; k < kTiles; ++k) {
      typename M::B b;
      M::load_b_rows(b, columns + 8 * k * ld + 8 * j, ld);
      RESCALED_UNROLL for (int i = 0; i < 2; ++i) multiply_split<false>(high[i], low[i], a[k], b, i);
    }
    RESCALED_UNROLL for (int i = 0; i < 2; ++i) add_chain(out[j + i], high[i], low[i]);
  }
}
template <int kTiles, int kOut>
RESCALED_DEVICE void chain_weights(double (&out)[kOut][4], const double (&w)[kTiles][4], const double* columns, int ld,
                                   int width) {
  multiply_weights<double, kTiles, kOut>(out, w, columns, ld, width);
}

}  // namespace
}  // namespace rescaled
