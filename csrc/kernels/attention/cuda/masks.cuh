// SPDX-License-Identifier: BSD-3-Clause
// What stands between a score and its weight: masks, bias, dropout.
#pragma once
#include "../../random.h"
#include "tile.cuh"

namespace rescaled {
namespace {

// Masks, bias, dropout of one problem.
template <class S>
struct Elementwise {
  int queries, keys;
  bool causal, drops;
  InputView bias, mask, tangent_bias;
  uint32_t seed_low, seed_high, threshold;
  S kept;
  RESCALED_MEMBER void set(const AttentionParameters& p, int64_t b) {
    queries = static_cast<int>(p.queries), keys = static_cast<int>(p.keys), causal = p.causal, drops = p.dropout_p > 0;
    bias = matrix(p.bias, p, b), mask = matrix(p.mask, p, b), tangent_bias = matrix(p.tangent_bias, p, b);
    if (!drops) return;
    const uint64_t seed = *static_cast<const uint64_t*>(matrix(p.dropout_seed, p, b).data);
    seed_low = static_cast<uint32_t>(seed), seed_high = static_cast<uint32_t>(seed >> 32);
    threshold = dropout_threshold(p.dropout_p), kept = static_cast<S>(1 / (1 - p.dropout_p));
  }

  // Beside what a causal problem and its ends mask.
  RESCALED_MEMBER bool is_any() const {
    return bias.data != nullptr || mask.data != nullptr || tangent_bias.data != nullptr || drops;
  }
  // In units of log 2; -inf where masked, and beyond the problem.
  RESCALED_MEMBER S log_weight(int query, int key) const {
    const S masked = -infinity<S>();
    if (query >= queries || key >= keys || (causal && key > query)) return masked;
    if (mask.data != nullptr && !static_cast<const bool*>(mask.data)[query * mask.row + key * mask.column])
      return masked;
    return bias.data != nullptr ? static_cast<S>(kLog2e) * number_at<S>(bias, query * bias.row + key * bias.column)
                                : S(0);
  }
  RESCALED_MEMBER S tangent(int query, int key) const {
    const bool there = tangent_bias.data != nullptr && query < queries && key < keys;
    return there ? number_at<S>(tangent_bias, query * tangent_bias.row + key * tangent_bias.column) : S(0);
  }
  // 0 or 1 / (1 - dropout_p)
  RESCALED_MEMBER S dropout(int query, int key) const {
    if (!drops) return S(1);
    return dropout_keeps(seed_low, seed_high, static_cast<uint32_t>(query), static_cast<uint32_t>(key), threshold)
               ? kept
               : S(0);
  }
};

}  // namespace
}  // namespace rescaled
