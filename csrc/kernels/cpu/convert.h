// SPDX-License-Identifier: BSD-3-Clause
// Element types in memory, and the arithmetic type T (float, double) the kernels compute in.
#pragma once
#include <utility>

#include "../element.h"
#include "../matrices.h"
#include "simd.h"

namespace rescaled::RESCALED_ISA {

#define RESCALED_PACKS(T)                                                                                            \
  void pack_rows_of(const void* data, DType, int64_t row, int64_t column, int64_t rows, int64_t columns, T factor,   \
                    T* to, int64_t padded_rows, int64_t ld);                                                         \
  void pack_transposed_of(const void* data, DType, int64_t row, int64_t column, int64_t rows, int64_t columns,       \
                          T factor, T* to, int64_t lanes);                                                           \
  void unpack_transposed_to(void* data, DType, int64_t row, int64_t column, int64_t rows, int64_t columns, T factor, \
                            const T* from, int64_t lanes);
RESCALED_PACKS(float)
RESCALED_PACKS(double)
#undef RESCALED_PACKS

namespace {

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

// Matrices to blocks and back, by functions of pack.cpp.
//
// to[i][:] = factor * m[i][:], zero beyond `rows` and `columns` up to `padded_rows` and `ld`.
template <class T>
RESCALED_INLINE void pack_rows(InputView m, int64_t rows, int64_t columns, T factor, T* to, int64_t padded_rows,
                               int64_t ld) {
  pack_rows_of(m.data, m.dtype, m.row, m.column, rows, columns, factor, to, padded_rows, ld);
}
// to[j][i] = factor * m[i][j]: rows become lanes; lanes beyond `rows` are 0.
template <class T>
RESCALED_INLINE void pack_transposed(InputView m, int64_t rows, int64_t columns, T factor, T* to, int64_t lanes) {
  pack_transposed_of(m.data, m.dtype, m.row, m.column, rows, columns, factor, to, lanes);
}
// m[i][j] = factor * from[j][i]
template <class T>
RESCALED_INLINE void unpack_transposed(OutputView m, int64_t rows, int64_t columns, T factor, const T* from,
                                       int64_t lanes) {
  unpack_transposed_to(m.data, m.dtype, m.row, m.column, rows, columns, factor, from, lanes);
}

// Rows and columns of a square of vectors change places: in step kBit, 2 x 2 blocks of kBit x kBit elements.
template <class T, int kBit, int... kLane>
RESCALED_INLINE void exchange(Vec<T>& x, Vec<T>& y, std::integer_sequence<int, kLane...>) {
  const Vec<T> low = __builtin_shufflevector(x, y, (kLane & kBit ? (kLane ^ kBit) + kLanes<T> : kLane)...);
  y = __builtin_shufflevector(x, y, (kLane & kBit ? kLane + kLanes<T> : kLane | kBit)...);
  x = low;
}
template <class T, int kBit = kLanes<T> / 2>
RESCALED_INLINE void transpose_square(Vec<T> (&x)[kLanes<T>]) {
  RESCALED_UNROLL for (int i = 0; i < kLanes<T>; ++i) if (!(i & kBit))
      exchange<T, kBit>(x[i], x[i | kBit], std::make_integer_sequence<int, kLanes<T>>());
  if constexpr (kBit > 1) transpose_square<T, kBit / 2>(x);
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
