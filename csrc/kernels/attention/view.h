// SPDX-License-Identifier: BSD-3-Clause
// Single matrices of the batches that the parameters describe.
#pragma once
#include <type_traits>

#include "../host_device.h"
#include "parameters.h"

namespace rescaled {
namespace {

RESCALED_HOST_DEVICE int64_t element_size(DType dtype) {
  switch (dtype) {
    case DType::float32:
      return 4;
    case DType::float64:
    case DType::int64:
      return 8;
    case DType::boolean:
      return 1;
    default:
      return 2;
  }
}

// One matrix of a batch: a pointer and two strides.
template <class Pointer>
struct View {
  Pointer data;
  DType dtype;
  int64_t row, column;
#if defined(__CUDACC__)
  __host__ __device__
#endif
      explicit operator bool() const {
    return data != nullptr;
  }
};
using InputView = View<const void*>;
using OutputView = View<void*>;

RESCALED_HOST_DEVICE InputView from_row(InputView m, int64_t row) {
  return {static_cast<const char*>(m.data) + row * m.row * element_size(m.dtype), m.dtype, m.row, m.column};
}
RESCALED_HOST_DEVICE OutputView row_of(OutputView m, int64_t row) {
  return {static_cast<char*>(m.data) + row * m.row * element_size(m.dtype), m.dtype, m.row, m.column};
}

// Matrix `b` of the batch.
template <class Pointer>
RESCALED_HOST_DEVICE View<Pointer> matrix(const Matrices<Pointer>& m, const AttentionParameters& p, int64_t b) {
  if (m.data == nullptr) return {nullptr, m.dtype, 0, 0};
  int64_t offset = 0;
  for (int d = p.rank - 1; d >= 0; --d) {
    offset += b % p.sizes[d] * m.batch[d];
    b /= p.sizes[d];
  }
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return {static_cast<Byte*>(m.data) + offset * element_size(m.dtype), m.dtype, m.row, m.column};
}

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
