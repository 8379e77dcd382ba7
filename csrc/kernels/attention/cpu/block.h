// SPDX-License-Identifier: BSD-3-Clause
// What the four primitives share about a block of scores: its log weights (bias, masks, causality) and its dropout
// factors. A block is `rows` x `lanes`; the lanes are queries (forward, JVP) or keys (backward, double backward).
#pragma once
#include "../../cpu/product.h"
#include "../../phi.h"
#include "../../random.h"
#include "../view.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Calls f with the type of the factors: of products of this instruction set, pairs alone (the others are its
// fallback's).
template <class E>
struct Factor {
  using Type = E;
};
template <class Function>
RESCALED_INLINE AttentionProgram with_factors([[maybe_unused]] const AttentionParameters& p, Function f) {
#if defined(__AVX512BF16__)
  return f(Factor<Pair>());
#else
  return p.query.dtype == DType::float64 ? f(Factor<double>()) : f(Factor<float>());
#endif
}

// Length in memory of a packed row: an odd number of cache lines. Products walk down the columns of these blocks, and
// at a power of two their lines would fall into few sets of the first-level cache (at head size 128 into 8 of 64; 3 %
// of the backward where heads lie next to each other, 15 % where they are interleaved).
template <class T>
RESCALED_INLINE int64_t packed_ld(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  return ((columns + line - 1) / line | 1) * line;
}

// What the lanes count is cut into panels, as wide as a register tile. Where the last one had a single vector, it and
// the one before have two each: so much as tiles of their own width multiply (kNarrow), and alike for two threads.
template <class E>
inline constexpr int64_t kPanel = kTileVectors * kLanes<Sum<E>>;
constexpr int kNarrow = 2;
struct Span {
  int64_t first, count;
};
template <class E>
RESCALED_INLINE int64_t panels_of(int64_t all) {
  return (all + kPanel<E> - 1) / kPanel<E>;
}
template <class E>
RESCALED_INLINE Span panel_span(int64_t all, int64_t panel) {
  const int64_t panels = panels_of<E>(all), border = (panels - 1) * kPanel<E> - kLanes<Sum<E>>;
  const bool shared = !kPairs<E> && panels > 1 && all <= border + kNarrow * kLanes<Sum<E>>;
  const int64_t first = shared && panel == panels - 1 ? border : panel * kPanel<E>,
                next = shared && panel == panels - 2 ? border : (panel + 1) * kPanel<E>;
  return {first, (next < all ? next : all) - first};
}

enum class Lanes { queries, keys };

struct Block {
  int64_t query, key, rows, lanes;
};  // its first query and key

// Offset of a block's first element in a matrix [queries, keys], and the strides of its rows and lanes there.
struct BlockStrides {
  int64_t first, row, lane;
};
template <Lanes kSide, class Pointer>
RESCALED_INLINE BlockStrides block_strides(View<Pointer> m, Block block) {
  const int64_t first = block.query * m.row + block.key * m.column;
  return kSide == Lanes::queries ? BlockStrides{first, m.column, m.row} : BlockStrides{first, m.row, m.column};
}

// to = factor * (the block of a floating matrix [queries, keys])
template <class T, Lanes kSide>
static void fill_elements(InputView m, Block block, T factor, T* to, int64_t ld) {
  const BlockStrides s = block_strides<kSide>(m, block);
  with_type(m.dtype, m.data, [&](auto* from) {
    for (int64_t r = 0; r < block.rows; ++r)
      for (int64_t x = 0; x < block.lanes; ++x)
        to[r * ld + x] = factor * static_cast<T>(value_of(from[s.first + r * s.row + x * s.lane]));
  });
}

// The log weights of a block in units of log 2: log2(e) bias, -inf where masked.
template <class T, Lanes kSide>
static void fill_log_weights(const AttentionParameters& p, InputView bias, InputView mask, Block block, T* to,
                             int64_t ld) {
  const T masked = -static_cast<T>(__builtin_inf());
  if (bias)
    fill_elements<T, kSide>(bias, block, static_cast<T>(kLog2e), to, ld);
  else
    for (int64_t r = 0; r < block.rows; ++r)
      for (int64_t x = 0; x < block.lanes; ++x) to[r * ld + x] = T(0);
  if (mask) {
    const BlockStrides s = block_strides<kSide>(mask, block);
    const bool* from = static_cast<const bool*>(mask.data);
    for (int64_t r = 0; r < block.rows; ++r)
      for (int64_t x = 0; x < block.lanes; ++x)
        if (!from[s.first + r * s.row + x * s.lane]) to[r * ld + x] = masked;
  }
  if (p.causal) {
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t ahead = kSide == Lanes::queries ? block.key + r - block.query : block.query + r - block.key;
      if (kSide == Lanes::queries)
        for (int64_t x = 0; x < block.lanes && x < ahead; ++x) to[r * ld + x] = masked;
      else
        for (int64_t x = ahead < 0 ? 0 : ahead + 1; x < block.lanes; ++x) to[r * ld + x] = masked;
    }
  }
}

// What packed queries have been multiplied by, and what is left to multiply their scores by: pairs are packed as they
// are, and the products' sums scaled.
template <class E>
RESCALED_INLINE Sum<E> packed_scale(const AttentionParameters& p) {
  return kPairs<E> ? Sum<E>(1) : static_cast<Sum<E>>(p.scale * kLog2e);
}
template <class E>
RESCALED_INLINE Sum<E> score_scale(const AttentionParameters& p) {
  return kPairs<E> ? static_cast<Sum<E>>(p.scale * kLog2e) : Sum<E>(1);
}
// The scores of a product: where pairs are scaled, rounded on its own, so that a score has the same bits everywhere.
template <class E>
RESCALED_INLINE Vec<Sum<E>> scaled([[maybe_unused]] Sum<E> scale, Vec<Sum<E>> product) {
  if constexpr (!kPairs<E>) {
    return product;
  } else {
    Vec<Sum<E>> score = scale * product;
#if defined(__AVX512F__)
    asm("" : "+v"(score));  // not fused with what is added next
#endif
    return score;
  }
}
// The natural scale that the tangent of a score is left to be multiplied by.
template <class E>
RESCALED_INLINE Sum<E> tangent_scale(const AttentionParameters& p) {
  return kPairs<E> ? static_cast<Sum<E>>(p.scale) : Sum<E>(kLn2);
}

// Rows become the lanes of a panel [depth][lanes] of factors, and lanes of sums rows.
template <class E>
RESCALED_INLINE void pack_panel(InputView m, int64_t rows, int64_t columns, [[maybe_unused]] Sum<E> factor, E* to,
                                int64_t lanes) {
#if defined(__AVX512BF16__)
  pack_pairs_transposed<false>(m, rows, columns, lanes, depth_of<E>(columns), to, lanes);
#else
  pack_transposed<E>(m, rows, columns, factor, to, lanes);
#endif
}
template <class E>
RESCALED_INLINE void unpack_panel(OutputView m, int64_t rows, int64_t columns, Sum<E> factor, const Sum<E>* from,
                                  int64_t lanes) {
#if defined(__AVX512BF16__)
  if (m.dtype == DType::bfloat16) return unpack_transposed_bfloat16(m, rows, columns, factor, from, lanes);
#endif
  unpack_transposed<Sum<E>>(m, rows, columns, factor, from, lanes);
}

// Does the block need log weights at all? The interior of a causal problem, and one without masks, does not.
RESCALED_INLINE bool weighted(const AttentionParameters& p, int64_t first_query, int64_t last_key) {
  return p.bias || p.mask || (p.causal && last_key > first_query);
}

// 0 or 1 / (1 - dropout_p) for each score, a function of (seed of the matrix, query, key) alone.
template <class T, Lanes kSide>
static void fill_dropout(const AttentionParameters& p, int64_t seed, Block block, T* to, int64_t ld) {
  const T kept = static_cast<T>(1 / (1 - p.dropout_p));
  const uint32_t threshold = dropout_threshold(p.dropout_p);
  const uint32_t low = static_cast<uint32_t>(seed), high = static_cast<uint32_t>(static_cast<uint64_t>(seed) >> 32);
  const uint32_t query = static_cast<uint32_t>(block.query), key = static_cast<uint32_t>(block.key);
  for (int64_t r = 0; r < block.rows; ++r)
    for (uint32_t x = 0; x < static_cast<uint32_t>(block.lanes); ++x) {
      const uint32_t row = static_cast<uint32_t>(r);
      const bool keep = kSide == Lanes::queries ? dropout_keeps(low, high, query + x, key + row, threshold)
                                                : dropout_keeps(low, high, query + row, key + x, threshold);
      to[r * ld + x] = keep ? kept : T(0);
    }
}

// log2 of a row's normalizer; +inf for a row without keys, so that its weights are 0.
template <class T>
RESCALED_INLINE T row_shift(double log_normalizer) {
  return static_cast<T>(log_normalizer == -__builtin_inf() ? __builtin_inf() : log_normalizer * kLog2e);
}

RESCALED_INLINE int64_t seed_of(const AttentionParameters& p, int64_t b) {
  const InputView seed = matrix(p.dropout_seed, p, b);
  int64_t x;
  __builtin_memcpy(&x, seed.data, sizeof x);
  return x;
}

// The matrices of one problem of the batch.
struct Problem {
  InputView query, key, value, bias, mask, grad_output, tangent_query, tangent_key, tangent_value, tangent_bias;
  int64_t seed = 0;
  Problem(const AttentionParameters& p, int64_t b)
      : query(matrix(p.query, p, b)),
        key(matrix(p.key, p, b)),
        value(matrix(p.value, p, b)),
        bias(matrix(p.bias, p, b)),
        mask(matrix(p.mask, p, b)),
        grad_output(matrix(p.grad_output, p, b)),
        tangent_query(matrix(p.tangent_query, p, b)),
        tangent_key(matrix(p.tangent_key, p, b)),
        tangent_value(matrix(p.tangent_value, p, b)),
        tangent_bias(matrix(p.tangent_bias, p, b)) {
    if (p.dropout_p > 0) seed = seed_of(p, b);
  }
};

}  // namespace
}  // namespace rescaled::RESCALED_ISA
