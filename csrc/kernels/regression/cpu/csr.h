// SPDX-License-Identifier: BSD-3-Clause
// Rows of a sparse A: products with a vector, and sums of rows.
#pragma once
#include "../../cpu/arena.h"
#include "../../cpu/convert.h"
#include "../csr.h"
#include "rows.h"

namespace rescaled::RESCALED_ISA {
namespace {

RESCALED_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class Index>
struct CsrRows {
  const void* values;
  DType dtype;
  const Index *crow, *col;
};

template <class Index>
RESCALED_INLINE CsrRows<Index> csr_rows(const CsrParameters& p, int64_t batch) {
  const InputView values = matrix(p.A, p, batch);
  return {values.data, values.dtype, static_cast<const Index*>(p.crow) + batch_offset(p, p.crow_batch, batch),
          static_cast<const Index*>(p.col) + batch_offset(p, p.col_batch, batch)};
}
// Calls f(CsrRows<Index>) with the rows of a problem.
template <class Function>
RESCALED_INLINE void with_rows(const CsrParameters& p, int64_t batch, Function f) {
  if (p.wide)
    f(csr_rows<int64_t>(p, batch));
  else
    f(csr_rows<int32_t>(p, batch));
}

// Calls f with a pointer to values of the type that they have where the arithmetic is in T.
template <class T, class Function>
RESCALED_INLINE void with_values(DType dtype, const void* values, Function f) {
  if constexpr (sizeof(T) == 8) {
    f(static_cast<const double*>(values));
  } else {
    switch (dtype) {
      case DType::bfloat16:
        return f(static_cast<const BFloat16*>(values));
      case DType::float16:
        return f(static_cast<const Float16*>(values));
      default:
        return f(static_cast<const float*>(values));
    }
  }
}

// Rows of a block: as many as have this many values, which stay in the second-level cache between the two times that
// they are read; a longer row is a block of its own. Of a part, whose indices are looked at just before they are
// followed: so few that the processor does both at once, while memory brings what is kAhead further on.
constexpr int64_t kBlockValues = 1 << 13, kPartValues = 1 << 9, kAhead = 1 << 10;

// Whether the rows [first, last) begin and end, and have their columns, where they may.
template <class Index>
static bool is_inside(const CsrParameters& p, const CsrRows<Index>& a, int64_t first, int64_t last) {
  const int64_t begin = a.crow[first];
  if (begin < 0 || begin > p.nonzeros || (first == 0 && begin != 0)) return false;
  int64_t end = begin;
  for (int64_t r = first; r < last; ++r) {
    const int64_t next = a.crow[r + 1];
    if (next < end || next > p.nonzeros) return false;
    end = next;
  }
  if (last == p.rows && end != p.nonzeros) return false;
  using Unsigned = std::conditional_t<sizeof(Index) == 4, uint32_t, uint64_t>;
  using Vector = std::conditional_t<sizeof(Index) == 4, UInt32Vector, UInt64Vector>;
  constexpr int64_t lanes = kVectorBytes / static_cast<int64_t>(sizeof(Index));
  const Unsigned columns =
      static_cast<Unsigned>(sizeof(Index) == 4 && p.columns > int64_t{UINT32_MAX} ? int64_t{UINT32_MAX} : p.columns);
  const int64_t size = element_size(a.dtype);
  const char* const values = static_cast<const char*>(a.values);
  Vector outside = {};  // a negative index is a large number
  int64_t k = begin;
  for (; k + lanes <= end; k += lanes) {
    __builtin_prefetch(a.col + k + kAhead, 0, 2);
    for (int64_t line = 0; line < lanes * size; line += 64)
      __builtin_prefetch(values + (k + kAhead) * size + line, 0, 2);
    Vector index;
    __builtin_memcpy(&index, a.col + k, sizeof index);
    outside |= reinterpret_cast<Vector>(index >= columns);
  }
  Unsigned any = 0;
  RESCALED_UNROLL for (int64_t i = 0; i < lanes; ++i) any |= outside[i];
  for (; k < end; ++k) any |= static_cast<Unsigned>(a.col[k]) >= columns ? 1 : 0;
  return any == 0;
}

// Calls f(first row, count) for groups of the rows [first, last) that have so many values, or are one row.
template <class Index, class Function>
RESCALED_INLINE void for_groups(const CsrRows<Index>& a, int64_t first, int64_t last, int64_t values, Function f) {
  while (first < last) {
    int64_t count = 1;
    for (const int64_t begin = a.crow[first]; count < kMostRows && first + count < last; ++count)
      if (a.crow[first + count + 1] - begin > values) break;
    f(first, count);
    first += count;
  }
}

// The same for blocks, whatever their indices are.
template <class Index, class Function>
RESCALED_INLINE void for_csr_blocks(const CsrRows<Index>& a, int64_t first, int64_t last, Function f) {
  for_groups(a, first, last, kBlockValues, f);
}

// The same for parts, until one has a wrong index. Returns whether none had.
template <class Index, class Function>
RESCALED_INLINE bool for_csr_parts(const CsrParameters& p, const CsrRows<Index>& a, int64_t first, int64_t last,
                                   Function f) {
  bool inside = true;
  for_groups(a, first, last, kPartValues, [&](int64_t from, int64_t count) {
    inside = inside && is_inside(p, a, from, from + count);
    if (inside) f(from, count);
  });
  if (!inside) __atomic_store_n(p.wrong, 1, __ATOMIC_RELAXED);
  return inside;
}

// Keeps the compiler from making vectors of numbers that come from all over memory: half as fast (measured).
template <class T>
RESCALED_INLINE void keep_scalar([[maybe_unused]] T& x) {
#if defined(__x86_64__)
  asm("" : "+x"(x));
#endif
}

// out[r] = row first + r times x.
template <class T, class Index>
static void multiply_csr(const CsrRows<Index>& a, int64_t first, int64_t count, const T* x, T* out) {
  with_values<T>(a.dtype, a.values, [&, crow = a.crow + first, col = a.col](auto* values) {
    int64_t k = crow[0];
    for (int64_t r = 0; r < count; ++r) {
      const int64_t end = crow[r + 1];
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
// rows.
template <class T, int kWidth, class Index>
static void scatter_csr(const CsrRows<Index>& a, int64_t first, int64_t count, int vectors, const T* coefficients,
                        bool squared, double* acc) {
  using Vector = typename Wide<kWidth>::Vector;
  with_values<T>(a.dtype, a.values, [&, crow = a.crow + first, col = a.col](auto* values) {
    int64_t k = crow[0];
    for (int64_t r = 0; r < count; ++r) {
      Vector w = {};
      if constexpr (kWidth == 1) {
        w = double{coefficients[r]};
      } else {  // in registers: numbers written one by one would wait for memory before they are read as one
        RESCALED_UNROLL for (int i = 0; i < kWidth; ++i) w[i] =
            i < vectors ? double{coefficients[i * kMostRows + r]} : 0;
      }
      for (const int64_t end = crow[r + 1]; k < end; ++k) {
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
}
RESCALED_INLINE int width_of(int vectors) { return vectors <= 1 ? 1 : vectors <= 2 ? 2 : vectors <= 4 ? 4 : 8; }
template <class T, class Index>
RESCALED_INLINE void scatter_csr(const CsrRows<Index>& a, int64_t first, int64_t count, int vectors,
                                 const T* coefficients, bool squared, double* acc) {
  switch (width_of(vectors)) {
    case 1:
      return scatter_csr<T, 1>(a, first, count, vectors, coefficients, squared, acc);
    case 2:
      return scatter_csr<T, 2>(a, first, count, vectors, coefficients, squared, acc);
    case 4:
      return scatter_csr<T, 4>(a, first, count, vectors, coefficients, squared, acc);
    default:
      return scatter_csr<T, 8>(a, first, count, vectors, coefficients, squared, acc);
  }
}

// Chunks of rows with sums of their own, of `width` numbers a column: no more than an eighth of the values' number of
// them.
RESCALED_INLINE int64_t most_chunks(const CsrParameters& p, int64_t numbers) {
  const int64_t most = p.nonzeros / (8 * numbers + 1);
  return most < 1 ? 1 : most > 64 ? 64 : most;
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
