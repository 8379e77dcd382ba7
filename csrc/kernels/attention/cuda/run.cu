// SPDX-License-Identifier: BSD-3-Clause
// The primitives as sequences of kernels on one stream.
#include "../../cuda/device.cuh"
#include "../../random.h"
#include "attention.h"
#include "kernels.cuh"
#include "weights.cuh"

namespace rescaled {
namespace {

__global__ void mask_walk(const int64_t* seeds, int64_t queries, int64_t keys, uint32_t threshold, int64_t count,
                          bool* to) {
  const int64_t stride = int64_t{block_threads()};
  const int64_t i = int64_t{block_index()} * stride + thread_index();
  if (i >= count) return;
  const uint64_t seed = static_cast<uint64_t>(seeds[i / (queries * keys)]);
  to[i] = dropout_keeps(static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32),
                        static_cast<uint32_t>(i / keys % queries), static_cast<uint32_t>(i % keys), threshold);
}

}  // namespace

int64_t attention_cuda_workspace_bytes(Primitive primitive, const AttentionParameters& p) {
  if (primitive == Primitive::forward) return attention_forward_workspace_bytes(p);
  if (primitive == Primitive::jvp) return 0;
  return batches(p) * kQueryArrays * padded_queries(p) * (p.query.dtype == DType::float64 ? 8 : 4);
}

const char* attention_cuda_run(Primitive primitive, const AttentionParameters& p, void* stream) {
  if (primitive == Primitive::forward) return attention_forward(p, stream);
  if (primitive == Primitive::jvp) return attention_jvp(p, stream);
  const bool second = primitive == Primitive::double_backward;
  const char* error = attention_query_numbers(p, second, stream);
  if (error == nullptr && p.grad_query) error = attention_gradient_query(p, second, stream);
  if (error == nullptr && (p.grad_key || p.grad_value)) error = attention_gradient_key(p, second, stream);
  if (error == nullptr && p.grad_bias) error = attention_gradient_bias(p, second, stream);
  return error;
}

const char* attention_cuda_dropout_mask(const int64_t* seeds, int64_t count, int64_t queries, int64_t keys,
                                        double dropout_p, bool* to, void* stream) {
  constexpr int threads = 256;
  const int64_t elements = count * queries * keys;
  return launch(mask_walk, (elements + threads - 1) / threads, threads, 0, stream, seeds, queries, keys,
                dropout_threshold(dropout_p), elements, to);
}

}  // namespace rescaled
