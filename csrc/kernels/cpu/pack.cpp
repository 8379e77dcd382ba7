// SPDX-License-Identifier: BSD-3-Clause
// Matrices of any type and strides to blocks that products read, and back (convert.h): once for an instruction set.
#include "convert.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
static void rows_packed(InputView m, int64_t rows, int64_t columns, T factor, T* to, int64_t padded_rows, int64_t ld) {
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

template <class T>
static void transposed_packed(InputView m, int64_t rows, int64_t columns, T factor, T* to, int64_t lanes) {
  with_type(m.dtype, m.data, [&](auto* from) {
    int64_t whole = 0, wide = 0;  // rows and columns that squares have done
    if constexpr (std::is_same_v<decltype(from), const T*>) {
      if (m.column == 1) whole = rows / kLanes<T> * kLanes<T>, wide = columns / kLanes<T> * kLanes<T>;
      for (int64_t i = 0; i < whole; i += kLanes<T>)
        for (int64_t j = 0; j < wide; j += kLanes<T>) {
          Vec<T> x[kLanes<T>];
          RESCALED_UNROLL for (int r = 0; r < kLanes<T>; ++r) x[r] = factor * load(from + (i + r) * m.row + j);
          transpose_square<T>(x);
          RESCALED_UNROLL for (int r = 0; r < kLanes<T>; ++r) store<T>(to + (j + r) * lanes + i, x[r]);
        }
    }
    for (int64_t i = 0; i < rows; ++i) {
      const auto* row = from + i * m.row;
      for (int64_t j = i < whole ? wide : 0; j < columns; ++j)
        to[j * lanes + i] = factor * static_cast<T>(value_of(row[j * m.column]));
    }
  });
  if (rows < lanes)
    for (int64_t j = 0; j < columns; ++j) std::memset(to + j * lanes + rows, 0, sizeof(T) * (lanes - rows));
}

template <class T>
static void transposed_unpacked(OutputView m, int64_t rows, int64_t columns, T factor, const T* from, int64_t lanes) {
  with_type(m.dtype, m.data, [&](auto* to) {
    int64_t whole = 0, wide = 0;
    if constexpr (std::is_same_v<decltype(to), T*>) {
      if (m.column == 1) whole = rows / kLanes<T> * kLanes<T>, wide = columns / kLanes<T> * kLanes<T>;
      for (int64_t i = 0; i < whole; i += kLanes<T>)
        for (int64_t j = 0; j < wide; j += kLanes<T>) {
          Vec<T> x[kLanes<T>];
          RESCALED_UNROLL for (int r = 0; r < kLanes<T>; ++r) x[r] = factor * load(from + (j + r) * lanes + i);
          transpose_square<T>(x);
          RESCALED_UNROLL for (int r = 0; r < kLanes<T>; ++r) store<T>(to + (i + r) * m.row + j, x[r]);
        }
    }
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = i < whole ? wide : 0; j < columns; ++j)
        assign(to[i * m.row + j * m.column], factor * from[j * lanes + i]);
  });
}

}  // namespace

#define RESCALED_PACKS(T)                                                                                            \
  void pack_rows_of(const void* data, DType dtype, int64_t row, int64_t column, int64_t rows, int64_t columns,       \
                    T factor, T* to, int64_t padded_rows, int64_t ld) {                                              \
    rows_packed<T>({data, dtype, row, column}, rows, columns, factor, to, padded_rows, ld);                          \
  }                                                                                                                  \
  void pack_transposed_of(const void* data, DType dtype, int64_t row, int64_t column, int64_t rows, int64_t columns, \
                          T factor, T* to, int64_t lanes) {                                                          \
    transposed_packed<T>({data, dtype, row, column}, rows, columns, factor, to, lanes);                              \
  }                                                                                                                  \
  void unpack_transposed_to(void* data, DType dtype, int64_t row, int64_t column, int64_t rows, int64_t columns,     \
                            T factor, const T* from, int64_t lanes) {                                                \
    transposed_unpacked<T>({data, dtype, row, column}, rows, columns, factor, from, lanes);                          \
  }
RESCALED_PACKS(float)
RESCALED_PACKS(double)

}  // namespace rescaled::RESCALED_ISA
