// SPDX-License-Identifier: BSD-3-Clause
// Tensors as kernels see them: raw pointers and element strides. No torch, no Python.
#pragma once
#include <cstdint>
#include <type_traits>

#include "host_device.h"

namespace rescaled {

enum class DType : int32_t { float32, float64, bfloat16, float16, boolean, int64 };
enum class Kind : int32_t { exp, cosh, sinh };

inline constexpr int kMaxBatchRank = 8;

// A batch of matrices [*batch, rows, columns] (of vectors: column = 0; of numbers: row = column = 0). Strides in
// elements, 0 where broadcast. Absent: data = nullptr.
template <class Pointer>
struct Matrices {
  Pointer data = nullptr;
  DType dtype = DType::float32;
  int64_t row = 0, column = 0;
  int64_t batch[kMaxBatchRank] = {};
  explicit operator bool() const { return data != nullptr; }
};
using Input = Matrices<const void*>;
using Output = Matrices<void*>;

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

// Elements from the first of a batch, whose sizes `p` has, to number `b`.
template <class Parameters>
RESCALED_HOST_DEVICE_CALL int64_t batch_offset(const Parameters& p, const int64_t* strides, int64_t b) {
  int64_t offset = 0;
  for (int d = p.rank - 1; d >= 0; --d) {
    offset += b % p.sizes[d] * strides[d];
    b /= p.sizes[d];
  }
  return offset;
}

// Matrix `b` of the batch.
template <class Pointer, class Parameters>
RESCALED_HOST_DEVICE View<Pointer> matrix(const Matrices<Pointer>& m, const Parameters& p, int64_t b) {
  if (m.data == nullptr) return {nullptr, m.dtype, 0, 0};
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return {static_cast<Byte*>(m.data) + batch_offset(p, m.batch, b) * element_size(m.dtype), m.dtype, m.row, m.column};
}

}  // namespace
}  // namespace rescaled
