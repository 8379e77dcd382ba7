// SPDX-License-Identifier: BSD-3-Clause
// Problems of a batch, and the dimensions that a bias has of it.
#pragma once
#include "parameters.h"

namespace rescaled {
namespace {

RESCALED_HOST_DEVICE int64_t batches(const AttentionParameters& p) { return p.kv_batches * p.group; }

// Leading dimensions the gradient of the bias has (kept) or is summed along.
RESCALED_HOST_DEVICE int64_t bias_batches(const AttentionParameters& p, bool kept) {
  int64_t n = 1;
  for (int d = 0; d < p.rank; ++d)
    if ((p.grad_bias.batch[d] != 0) == kept) n *= p.sizes[d];
  return n;
}
// The problem whose kept dimensions count to `kept` and whose summed ones to `summed`.
RESCALED_HOST_DEVICE int64_t bias_problem(const AttentionParameters& p, int64_t kept, int64_t summed) {
  int64_t b = 0, stride = 1;
  for (int d = p.rank - 1; d >= 0; --d) {
    int64_t& index = p.grad_bias.batch[d] != 0 ? kept : summed;
    b += index % p.sizes[d] * stride;
    index /= p.sizes[d];
    stride *= p.sizes[d];
  }
  return b;
}

}  // namespace
}  // namespace rescaled
