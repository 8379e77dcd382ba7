// SPDX-License-Identifier: BSD-3-Clause
// Rows of a sparse A: products with a vector, and sums of rows.
#pragma once
#include "../../cpu/isa.h"
#include "csr_gather.h"

namespace rescaled::RESCALED_ISA {
namespace {

RESCALED_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Keeps the compiler from making vectors of numbers that come from all over memory: half as fast (measured).
template <class T>
RESCALED_INLINE void keep_scalar([[maybe_unused]] T& x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#endif
}

// out[r] = row first + r times x. False where an index is wrong.
template <class T, class Index>
static __attribute__((noinline)) bool multiply_csr(const CsrParameters& p, const CsrRows<Index>& a, int64_t first,
                                                   int64_t count, Visit visit, const T* x, T* out) {
  if (visit == Visit::unchecked && !remember(p, ends_fit(p, a, first, first + count))) return false;
#if defined(__AVX512F__)
  if (a.dtype == kDType<T> && cpu_gathers_pay())
    return remember(p, multiply_by_gathers<T>(Reader<Index>(p, a, visit), a, first, count, x, out));
#endif
  const Reader<Index> reader(p, a, visit);
  bool inside = true;
  with_values<T>(a.dtype, a.values, [&, crow = a.crow + first, col = a.col](auto* values) {
    int64_t k = crow[0];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t end = crow[r + 1];
      if (!reader.admits(k, end)) return void(inside = false);
      T sum = 0, second = 0, third = 0, fourth = 0;
      const auto add = [&](T& to, int64_t at) {
        to += static_cast<T>(value_of(values[at])) * x[col[at]];
        keep_scalar(to);
      };
      // An addition takes four times as long as its turn; short rows overlap by themselves.
      if (end - k > 32)
        for (; k + 4 <= end; k += 4) add(sum, k), add(second, k + 1), add(third, k + 2), add(fourth, k + 3);
      for (; k < end; ++k) add(sum, k);
      out[r] = (sum + second) + (third + fourth);
    }
  });
  return remember(p, inside);
}

// kWidth sums of a column side by side: one vector operation a value, whatever their number.
template <int kWidth>
struct Wide {
  typedef double Vector __attribute__((vector_size(kWidth * 8)));
};
template <>
struct Wide<1> {
  using Vector = double;
};

// acc[column][i] += coefficients[i][row] times the value (or its square), in double: a column may meet any number of
// rows. False where an index is wrong.
template <class T, int kWidth, class Index>
static __attribute__((noinline)) bool scatter_csr(const CsrParameters& p, const CsrRows<Index>& a, int64_t first,
                                                  int64_t count, Visit visit, int vectors, const T* coefficients,
                                                  bool squared, double* acc) {
  using Vector = typename Wide<kWidth>::Vector;
  if (visit == Visit::unchecked && !remember(p, ends_fit(p, a, first, first + count))) return false;
  const Reader<Index> reader(p, a, visit);
  bool inside = true;
  with_values<T>(a.dtype, a.values, [&, crow = a.crow + first, col = a.col](auto* values) {
    int64_t k = crow[0];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t end = crow[r + 1];
      if (!reader.admits(k, end)) return void(inside = false);
      Vector w = {};
      if constexpr (kWidth == 1) {
        w = double{coefficients[r]};
      } else {  // in registers: numbers written one by one would wait for memory before they are read as one
        RESCALED_UNROLL for (int i = 0; i < kWidth; ++i) w[i] =
            i < vectors ? double{coefficients[i * kMostRows + r]} : 0;
      }
      for (; k < end; ++k) {
        double value = static_cast<double>(value_of(values[k]));
        if (squared) value *= value;
        double* const to = acc + int64_t{col[k]} * kWidth;
        Vector sum;
        __builtin_memcpy(&sum, to, sizeof sum);
        sum += w * value;
        __builtin_memcpy(to, &sum, sizeof sum);
      }
    }
  });
  return remember(p, inside);
}
RESCALED_INLINE int width_of(int vectors) { return vectors <= 1 ? 1 : vectors <= 2 ? 2 : vectors <= 4 ? 4 : 8; }
template <class T, class Index>
RESCALED_INLINE bool scatter_csr(const CsrParameters& p, const CsrRows<Index>& a, int64_t first, int64_t count,
                                 Visit visit, int vectors, const T* coefficients, bool squared, double* acc) {
  switch (width_of(vectors)) {
    case 1:
      return scatter_csr<T, 1>(p, a, first, count, visit, vectors, coefficients, squared, acc);
    case 2:
      return scatter_csr<T, 2>(p, a, first, count, visit, vectors, coefficients, squared, acc);
    case 4:
      return scatter_csr<T, 4>(p, a, first, count, visit, vectors, coefficients, squared, acc);
    default:
      return scatter_csr<T, 8>(p, a, first, count, visit, vectors, coefficients, squared, acc);
  }
}

// Chunks of rows with sums of their own, of `numbers`: no more than a sixteenth of the values' number of them, or, up
// to four, a quarter, which costs a thread alone a twentieth and lets others help with small problems.
RESCALED_INLINE int64_t most_chunks(const CsrParameters& p, int64_t numbers) {
  const int64_t few = p.nonzeros / (4 * numbers + 1), many = few / 4, most = many > 4 ? many : smaller(few, 4);
  return most < 1 ? 1 : smaller(most, 64);
}
RESCALED_INLINE int64_t row_work(const CsrParameters& p) { return p.rows > 0 ? p.nonzeros / p.rows + 8 : 8; }

// A vector of the columns in the type T: itself, or a copy in `scratch`.
template <class T>
static const T* column_vector(InputView m, int64_t columns, T* scratch) {
  if (m.dtype == kDType<T> && m.row == 1) return static_cast<const T*>(m.data);
  load_vector<T>(m, 0, columns, columns, scratch);
  return scratch;
}

// Columns of a task that joins the chunks' sums.
constexpr int64_t kJoinColumns = 2048;
RESCALED_INLINE int64_t column_blocks(const CsrParameters& p) { return (p.columns + kJoinColumns - 1) / kJoinColumns; }

}  // namespace
}  // namespace rescaled::RESCALED_ISA
