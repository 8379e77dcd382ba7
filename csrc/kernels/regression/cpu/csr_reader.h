// SPDX-License-Identifier: BSD-3-Clause
// Rows of a sparse A, and their indices, which are looked at just before they are followed.
#pragma once
#include "../../cpu/arena.h"
#include "../../cpu/convert.h"
#include "../csr.h"
#include "rows.h"

namespace rescaled::RESCALED_ISA {
namespace {

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
// they are read; a longer row is a block of its own. What memory brings while a row is read is kAhead further on.
constexpr int64_t kBlockValues = 1 << 13, kAhead = 1 << 10;

// What is known of rows that are about to be read. unchecked: nothing, so that their indices are looked at just before
// they are followed; first: an earlier pass has looked; again: they were read a moment ago, and are near. The first two
// ask memory for what comes later.
enum class Visit { unchecked, first, again };

template <class Index>
using Indices = std::conditional_t<sizeof(Index) == 4, UInt32Vector, UInt64Vector>;
template <class Index>
inline constexpr int64_t kIndexLanes = kVectorBytes / static_cast<int64_t>(sizeof(Index));

// The first `count` < kIndexLanes indices, then zeros.
template <class Index>
RESCALED_INLINE Indices<Index> first_indices(const Index* from, int64_t count) {
  Indices<Index> x = {};
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(Index) == 4)
    x = (UInt32Vector)_mm512_maskz_loadu_epi32(static_cast<__mmask16>(mask), from);
  else
    x = (UInt64Vector)_mm512_maskz_loadu_epi64(static_cast<__mmask8>(mask), from);
#elif defined(__AVX2__)
  Indices<Index> position, last;
  RESCALED_UNROLL for (int i = 0; i < kIndexLanes<Index>; ++i) position[i] = i, last[i] = static_cast<uint32_t>(count);
  if constexpr (sizeof(Index) == 4)
    x = (UInt32Vector)_mm256_maskload_epi32(reinterpret_cast<const int*>(from), (__m256i)(position < last));
  else
    x = (UInt64Vector)_mm256_maskload_epi64(reinterpret_cast<const long long*>(from), (__m256i)(position < last));
#else
  using Lane = std::make_unsigned_t<Index>;
  for (int64_t i = 0; i < count; ++i) x[i] = static_cast<Lane>(from[i]);
#endif
  return x;
}

template <class Vector>
RESCALED_INLINE bool is_zero(Vector x) {
#if defined(__AVX512F__)
  return _mm512_test_epi64_mask((__m512i)x, (__m512i)x) == 0;
#elif defined(__AVX2__)
  return _mm256_testz_si256((__m256i)x, (__m256i)x) != 0;
#else
  const UInt64Vector bits = (UInt64Vector)x;
  return (bits[0] | bits[1]) == 0;
#endif
}

// What is known of the rows while they are read.
template <class Index>
struct Reader {
  using Vector = Indices<Index>;
  Vector columns;
  int64_t nonzeros, size;
  const char* values;
  const Index* col;
  Visit visit;
  Reader(const CsrParameters& p, const CsrRows<Index>& a, Visit how)
      : nonzeros(p.nonzeros),
        size(element_size(a.dtype)),
        values(static_cast<const char*>(a.values)),
        col(a.col),
        visit(how) {
    using Unsigned = std::make_unsigned_t<Index>;
    const Unsigned most = Unsigned{1} << (8 * sizeof(Index) - 1);  // a negative index is no smaller
    const bool all = static_cast<uint64_t>(p.columns) > most;
    for (int i = 0; i < kIndexLanes<Index>; ++i) columns[i] = all ? most : static_cast<Unsigned>(p.columns);
  }
  // Whether the values [begin, end) may be a row's.
  bool orders(int64_t begin, int64_t end) const {
    return visit != Visit::unchecked || (begin <= end && end <= nonzeros);
  }
  void ask_ahead(int64_t k, int64_t count) const {
    if (visit == Visit::again) return;
    __builtin_prefetch(col + k + kAhead, 0, 2);
    for (int64_t line = 0; line < count * size; line += 64)
      __builtin_prefetch(values + (k + kAhead) * size + line, 0, 2);
  }
  // Before the row of the values [begin, end) is read: false where it may not be.
  bool admits(int64_t begin, int64_t end) const {
    if (visit == Visit::again) return true;
    if (!orders(begin, end)) return false;
    Vector outside = {};
    for (int64_t k = begin; k < end; k += kIndexLanes<Index>) {
      ask_ahead(k, kIndexLanes<Index>);
      if (visit == Visit::first) continue;
      Vector index;
      if (k + kIndexLanes<Index> <= end)
        __builtin_memcpy(&index, col + k, sizeof index);
      else
        index = first_indices(col + k, end - k);
      outside |= reinterpret_cast<Vector>(index >= columns);
    }
    return is_zero(outside);
  }
};

// Whether the rows [first, last) begin and end where they may, as far as the rows between do.
template <class Index>
RESCALED_INLINE bool ends_fit(const CsrParameters& p, const CsrRows<Index>& a, int64_t first, int64_t last) {
  const int64_t begin = a.crow[first];
  return begin >= 0 && begin <= p.nonzeros && (first > 0 || begin == 0) &&
         (last < p.rows || int64_t{a.crow[last]} == p.nonzeros);
}
RESCALED_INLINE bool remember(const CsrParameters& p, bool inside) {
  if (!inside) __atomic_store_n(p.wrong, 1, __ATOMIC_RELAXED);
  return inside;
}

// Whether the rows [first, last) begin and end, and have their columns, where they may.
template <class Index>
static bool is_inside(const CsrParameters& p, const CsrRows<Index>& a, int64_t first, int64_t last) {
  const Reader<Index> reader(p, a, Visit::unchecked);
  bool inside = ends_fit(p, a, first, last);
  for (int64_t r = first; inside && r < last; ++r) inside = reader.admits(a.crow[r], a.crow[r + 1]);
  return inside;
}

// Calls f(first row, count) for blocks of the rows [first, last).
template <class Index, class Function>
RESCALED_INLINE void for_csr_blocks(const CsrRows<Index>& a, int64_t first, int64_t last, Function f) {
  while (first < last) {
    int64_t count = 1;
    for (const int64_t begin = a.crow[first]; count < kMostRows && first + count < last; ++count)
      if (a.crow[first + count + 1] - begin > kBlockValues) break;
    f(first, count);
    first += count;
  }
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
