// SPDX-License-Identifier: BSD-3-Clause
// Products of tiles by the tensor cores in chains: float32's (3xTF32, mma.cuh) are summed by them over a depth of
// kChainDepth, where what they cut off is still less than what float32 rounds, before a rounding addition.
#pragma once
#include "../../cuda/mma.cuh"

namespace rescaled {
namespace {

constexpr int kChainDepth = 32;

// x as a sum of two TF32 numbers, of 22 bits: the first 10 bits of the mantissa cut off, the rest rounded (the tensor
// cores do not look at the last 13 bits). Three instructions; to round the first one takes more.
RESCALED_DEVICE void split(float x, float& high, float& low) {
  high = bits_as<float>(bits_as<uint32_t>(x) & ~0x1fffu);
#if defined(RESCALED_TWIN)
  low = x - high;  // rounded by the product's twin
#else
  low = bits_as<float>(bits_as<uint32_t>(x - high) + 0x1000u);
#endif
}
struct SplitA {  // 16 x 8, as Mma<float>::A
  float high[4], low[4];
};
struct SplitB {  // 8 x 16
  float high[2][2], low[2][2];
};
RESCALED_DEVICE void load_split(SplitA& a, const float* tile, int ld) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  RESCALED_UNROLL for (int i = 0; i < 4; ++i) split(tile[(g + i % 2 * 8) * ld + t + i / 2 * 4], a.high[i], a.low[i]);
}
RESCALED_DEVICE void load_split(SplitB& b, const float* tile, int ld) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  RESCALED_UNROLL for (int j = 0; j < 2; ++j) RESCALED_UNROLL for (int i = 0; i < 2; ++i)
      split(tile[(8 * j + g) * ld + t + 4 * i], b.high[j][i], b.low[j][i]);
}
RESCALED_DEVICE void load_split_rows(SplitB& b, const float* tile, int ld) {
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  RESCALED_UNROLL for (int j = 0; j < 2; ++j) RESCALED_UNROLL for (int i = 0; i < 2; ++i)
      split(tile[(2 * t + i) * ld + 8 * j + g], b.high[j][i], b.low[j][i]);
}

// c += high + low. The parts of an infinity or a NaN make `low` NaN: the product of the high parts is then the product.
RESCALED_DEVICE void add_chain(float (&c)[4], const float (&high)[4], const float (&low)[4]) {
  RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
    const float sum = high[x] + low[x];
    c[x] += sum == sum ? sum : high[x];
  }
}
template <bool kSwapped>
RESCALED_DEVICE void multiply_split(float (&high)[4], float (&low)[4], const SplitA& a, const SplitB& b, int j) {
  multiply_tf32(low, kSwapped ? a.high : a.low, kSwapped ? b.low[j] : b.high[j]);
  multiply_tf32(low, kSwapped ? a.low : a.high, kSwapped ? b.high[j] : b.low[j]);
  multiply_tf32(high, a.high, b.high[j]);
}

// As multiply_rows and multiply_weights of mma.cuh.
template <int kTiles, bool kSwapped>
RESCALED_DEVICE void chain_rows(float (&acc)[kTiles][4], const float* rows, int row_ld, const float* columns,
                                int column_ld, int depth) {
  RESCALED_ROLLED for (int first = 0; first < depth; first += kChainDepth) {
    float high[kTiles][4] = {}, low[kTiles][4] = {};
    const int end = first + kChainDepth < depth ? first + kChainDepth : depth;
    RESCALED_ROLLED for (int k = first; k < end; k += 8) {
      SplitA a;
      load_split(a, rows + k, row_ld);
      RESCALED_UNROLL for (int j = 0; j < kTiles; j += 2) {
        SplitB b;
        load_split(b, columns + j * 8 * column_ld + k, column_ld);
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
  static_assert(8 * kTiles <= kChainDepth);
  SplitA a[kTiles];
  RESCALED_UNROLL for (int k = 0; k < kTiles; ++k) RESCALED_UNROLL for (int i = 0; i < 4; ++i)
      split(w[k][i % 2 * 2 + i / 2], a[k].high[i], a[k].low[i]);
  RESCALED_UNROLL for (int j = 0; j < kOut; j += 2) {
    if (8 * j >= width) continue;
    float high[2][4] = {}, low[2][4] = {};
    RESCALED_UNROLL for (int k = 0; k < kTiles; ++k) {
      SplitB b;
      load_split_rows(b, columns + 8 * k * ld + 8 * j, ld);
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
