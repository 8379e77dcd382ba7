// SPDX-License-Identifier: BSD-3-Clause
// Element types in memory, and the arithmetic type T (float, double) the kernels compute in.
#pragma once
#include "../attention/parameters.h"
#include "simd.h"

namespace rescaled::RESCALED_ISA {
namespace {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

RESCALED_INLINE float value_of(float x) { return x; }
RESCALED_INLINE double value_of(double x) { return x; }
RESCALED_INLINE float value_of(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float y;
  __builtin_memcpy(&y, &bits, 4);
  return y;
}
RESCALED_INLINE float value_of(Float16 x) {
  _Float16 h;
  __builtin_memcpy(&h, &x, 2);
  return static_cast<float>(h);
}
RESCALED_INLINE float value_of(bool x) { return x ? 1.f : 0.f; }

RESCALED_INLINE void assign(float& y, float x) { y = x; }
RESCALED_INLINE void assign(double& y, double x) { y = x; }
RESCALED_INLINE void assign(BFloat16& y, float x) {  // to nearest, ties to even; a NaN stays one
  uint32_t bits;
  __builtin_memcpy(&bits, &x, 4);
  y.bits = static_cast<uint16_t>(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
RESCALED_INLINE void assign(Float16& y, float x) {
  const _Float16 h = static_cast<_Float16>(x);
  __builtin_memcpy(&y, &h, 2);
}

// Calls f with a pointer to elements of the type that `dtype` names.
template <class Function>
RESCALED_INLINE void with_type(DType dtype, const void* p, Function f) {
  switch (dtype) {
    case DType::float32:
      return f(static_cast<const float*>(p));
    case DType::float64:
      return f(static_cast<const double*>(p));
    case DType::bfloat16:
      return f(static_cast<const BFloat16*>(p));
    case DType::float16:
      return f(static_cast<const Float16*>(p));
    default:
      return f(static_cast<const bool*>(p));
  }
}
template <class Function>
RESCALED_INLINE void with_type(DType dtype, void* p, Function f) {
  switch (dtype) {
    case DType::float32:
      return f(static_cast<float*>(p));
    case DType::float64:
      return f(static_cast<double*>(p));
    case DType::bfloat16:
      return f(static_cast<BFloat16*>(p));
    default:
      return f(static_cast<Float16*>(p));
  }
}
template <class T>
inline constexpr DType kDType = sizeof(T) == 4 ? DType::float32 : DType::float64;

RESCALED_INLINE int64_t element_size(DType dtype) {
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
  explicit operator bool() const { return data != nullptr; }
};
using InputView = View<const void*>;
using OutputView = View<void*>;

RESCALED_INLINE InputView from_row(InputView m, int64_t row) {
  return {static_cast<const char*>(m.data) + row * m.row * element_size(m.dtype), m.dtype, m.row, m.column};
}

RESCALED_INLINE OutputView row_of(OutputView m, int64_t row) {
  return {static_cast<char*>(m.data) + row * m.row * element_size(m.dtype), m.dtype, m.row, m.column};
}

// Matrix `b` of the batch.
template <class Pointer>
static View<Pointer> matrix(const Matrices<Pointer>& m, const AttentionParameters& p, int64_t b) {
  if (!m.data) return {nullptr, m.dtype, 0, 0};
  int64_t offset = 0;
  for (int d = p.rank - 1; d >= 0; --d) {
    offset += b % p.sizes[d] * m.batch[d];
    b /= p.sizes[d];
  }
  using Byte = std::conditional_t<std::is_const_v<std::remove_pointer_t<Pointer>>, const char, char>;
  return {static_cast<Byte*>(m.data) + offset * element_size(m.dtype), m.dtype, m.row, m.column};
}

// to[i][:] = factor * m[i][:], zero beyond `rows` and `columns` up to `padded_rows` and `ld`.
template <class T>
static void pack_rows(InputView m, int64_t rows, int64_t columns, T factor, T* to, int64_t padded_rows, int64_t ld) {
  with_type(m.dtype, m.data, [&](auto* from) {
    for (int64_t i = 0; i < rows; ++i) {
      const auto* row = from + i * m.row;
      T* out = to + i * ld;
      if (m.column == 1)
        for (int64_t j = 0; j < columns; ++j) out[j] = factor * static_cast<T>(value_of(row[j]));
      else
        for (int64_t j = 0; j < columns; ++j) out[j] = factor * static_cast<T>(value_of(row[j * m.column]));
      for (int64_t j = columns; j < ld; ++j) out[j] = T(0);
    }
  });
  if (padded_rows > rows) std::memset(to + rows * ld, 0, sizeof(T) * (padded_rows - rows) * ld);
}

// to[j][i] = factor * m[i][j]: rows become lanes; lanes beyond `rows` are 0.
template <class T>
static void pack_transposed(InputView m, int64_t rows, int64_t columns, T factor, T* to, int64_t lanes) {
  with_type(m.dtype, m.data, [&](auto* from) {
    for (int64_t i = 0; i < rows; ++i) {
      const auto* row = from + i * m.row;
      for (int64_t j = 0; j < columns; ++j) to[j * lanes + i] = factor * static_cast<T>(value_of(row[j * m.column]));
    }
  });
  if (rows < lanes)
    for (int64_t j = 0; j < columns; ++j) std::memset(to + j * lanes + rows, 0, sizeof(T) * (lanes - rows));
}

// m[i][j] = factor * from[j][i]
template <class T>
static void unpack_transposed(OutputView m, int64_t rows, int64_t columns, T factor, const T* from, int64_t lanes) {
  with_type(m.dtype, m.data, [&](auto* to) {
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) assign(to[i * m.row + j * m.column], factor * from[j * lanes + i]);
  });
}

// A matrix as rows of T with unit column stride: in place where memory already is that, else packed into `scratch`.
// `whole_rows`: the reader runs past `rows` to a multiple of it; `whole_columns`: past `columns`.
template <class T>
struct Rows {
  const T* data;
  int64_t ld;
};
template <class T>
RESCALED_INLINE Rows<T> after(Rows<T> m, int64_t rows) {
  return {m.data ? m.data + rows * m.ld : nullptr, m.ld};
}
template <class T>
RESCALED_INLINE bool in_place(InputView m, int64_t rows, int64_t columns, int64_t whole_rows, int64_t whole_columns) {
  return m.dtype == kDType<T> && (m.column == 1 || columns == 1) && rows % whole_rows == 0 &&
         columns % whole_columns == 0;
}
RESCALED_INLINE int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }
template <class T>
static Rows<T> rows_of(InputView m, int64_t rows, int64_t columns, int64_t whole_rows, int64_t whole_columns,
                       T* scratch) {
  if (in_place<T>(m, rows, columns, whole_rows, whole_columns)) return {static_cast<const T*>(m.data), m.row};
  const int64_t ld = round_up(columns, whole_columns);
  pack_rows<T>(m, rows, columns, T(1), scratch, round_up(rows, whole_rows), ld);
  return {scratch, ld};
}

RESCALED_INLINE double element(InputView m, int64_t i) {  // of a vector
  double x = 0;
  with_type(m.dtype, m.data, [&](auto* p) { x = static_cast<double>(value_of(p[i * m.row])); });
  return x;
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
