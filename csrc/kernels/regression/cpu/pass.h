// SPDX-License-Identifier: BSD-3-Clause
// One pass over the rows of A in blocks that stay in the first-level cache: logits by products of rows, then sums of
// rows, while the next block is on its way from memory.
#pragma once
#include "rows.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Chunks of rows are the unit of work, and of the fixed order in which sums are joined: by shape alone.
struct Chunks {
  int64_t count, rows;  // of a problem; rows of each but the last
  explicit Chunks(const RegressionParameters& p, int64_t work_per_row, int64_t most = 64) {
    const int64_t least_rows = (int64_t{1} << 16) / (work_per_row + 1) + 1;
    const int64_t wanted = most / (p.batches < most ? p.batches : most);
    rows = (p.rows + wanted - 1) / wanted;
    rows = round_up(rows < least_rows ? least_rows : rows, kMostRows);
    count = p.rows > 0 ? (p.rows + rows - 1) / rows : 1;
  }
  int64_t begin(int64_t chunk) const { return chunk * rows; }
  int64_t end(const RegressionParameters& p, int64_t chunk) const {
    return begin(chunk) + rows < p.rows ? begin(chunk) + rows : p.rows;
  }
};

// Rows of a block for which 12 KB of A are in work, and as many on their way.
template <class T>
RESCALED_INLINE int64_t block_rows(const RegressionParameters& p) {
  const int64_t fit = 12 * 1024 / static_cast<int64_t>(sizeof(T)) / (p.columns > 0 ? p.columns : 1),
                rows = fit / kRowUnit<T> * kRowUnit<T>;
  return rows < kRowUnit<T> ? kRowUnit<T> : rows < kMostRows ? rows : kMostRows;
}

// Rows [first, first + count) as T with unit column stride: in place, or packed into `scratch`.
template <class T>
RESCALED_INLINE Rows<T> block_of(InputView m, int64_t first, int64_t count, int64_t columns, T* scratch) {
  return rows_of<T>(from_row(m, first), count, columns, 1, 1, scratch);
}
template <class T>
RESCALED_INLINE bool reads_in_place(const RegressionParameters& p) {
  return in_place<T>(InputView{p.A.data, p.A.dtype, p.A.row, p.A.column}, 1, p.columns, 1, 1);
}

// Lane i of the result is the sum over the lanes of x[i]: log2(lanes) rounds of pairwise sums.
template <class T>
RESCALED_INLINE Vec<T> transposed_sum(Vec<T> (&x)[kLanes<T>]) {
  using Integer = typename Simd<T>::Integer;
  RESCALED_UNROLL for (int h = kLanes<T> / 2; h >= 1; h /= 2) {
    Integer own, other;
    RESCALED_UNROLL for (int lane = 0; lane < kLanes<T>; ++lane) {
      const int from = lane & h ? kLanes<T> : 0;  // of x[i] or x[i + h]
      own[lane] = from + lane, other[lane] = from + (lane ^ h);
    }
    RESCALED_UNROLL for (int i = 0; i < h; ++i) x[i] =
        __builtin_shuffle(x[i], x[i + h], own) + __builtin_shuffle(x[i], x[i + h], other);
  }
  return x[0];
}

// out[k][i] = row i times vectors[k], for a unit of rows. `rows`: those that exist; the last is repeated.
template <class T, int kVectorsIn>
static void products_of_rows(Rows<T> a, int64_t rows, int64_t padded, int64_t columns, const T* const (&vectors)[kVectorsIn],
                             T* const (&out)[kVectorsIn]) {
  constexpr int group = kVectorsIn == 1 ? 8 : 4;  // 8 accumulators
  const int64_t whole = columns / kLanes<T> * kLanes<T>, left = columns - whole;
  for (int64_t first = 0; first < padded; first += kRowUnit<T>) {
    Vec<T> sums[kVectorsIn][kRowUnit<T>];
    RESCALED_UNROLL for (int g = 0; g < kRowUnit<T>; g += group) {
      const T* row[group];
      for (int i = 0; i < group; ++i) {
        const int64_t at = first + g + i;
        row[i] = a.data + (at < rows ? at : rows - 1) * a.ld;
      }
      Vec<T> s[kVectorsIn][group] = {};
      const auto step = [&](int64_t j, auto load_at) __attribute__((always_inline)) {
        Vec<T> x[kVectorsIn];
        RESCALED_UNROLL for (int k = 0; k < kVectorsIn; ++k) x[k] = load_at(vectors[k] + j);
        RESCALED_UNROLL for (int i = 0; i < group; ++i) {
          const Vec<T> y = load_at(row[i] + j);
          RESCALED_UNROLL for (int k = 0; k < kVectorsIn; ++k) s[k][i] += y * x[k];
        }
      };
      for (int64_t j = 0; j < whole; j += kLanes<T>) step(j, [](const T* p) { return load(p); });
      if (left > 0) step(whole, [&](const T* p) { return load_first(p, left); });
      RESCALED_UNROLL for (int k = 0; k < kVectorsIn; ++k) RESCALED_UNROLL for (int i = 0; i < group; ++i)
          sums[k][g + i] = s[k][i];
    }
    RESCALED_UNROLL for (int k = 0; k < kVectorsIn; ++k) RESCALED_UNROLL for (int i = 0; i < kRowUnit<T>; i += kLanes<T>) {
      Vec<T> part[kLanes<T>];
      RESCALED_UNROLL for (int l = 0; l < kLanes<T>; ++l) part[l] = sums[k][i + l];
      store(out[k] + first + i, transposed_sum<T>(part));
    }
  }
}

// acc[k][j] += sum over rows of coefficients[k][row] a[row][j], for kColumns vectors of columns from j. While it goes,
// the cache lines of `next` are asked for.
template <class T, int kCount, int kColumns, bool kTail>
static __attribute__((always_inline)) inline void add_columns(Rows<T> a, int64_t rows, int64_t j, int64_t left,
                                                              const T* coefficients, T* acc, int64_t ld,
                                                              const char* next, int64_t next_ld, int64_t next_bytes) {
  Vec<T> sum[kCount][kColumns];
  RESCALED_UNROLL for (int k = 0; k < kCount; ++k) RESCALED_UNROLL for (int c = 0; c < kColumns; ++c) sum[k][c] =
      load(acc + k * ld + j + c * kLanes<T>);
  for (int64_t i = 0; i < rows; ++i) {
    if (next)
      for (int64_t line = 0; line < next_bytes; line += 64) __builtin_prefetch(next + i * next_ld + line, 0, 2);
    Vec<T> x[kColumns];
    RESCALED_UNROLL for (int c = 0; c < kColumns; ++c) {
      const T* from = a.data + i * a.ld + j + c * kLanes<T>;
      x[c] = kTail ? load_first(from, left) : load(from);
    }
    RESCALED_UNROLL for (int k = 0; k < kCount; ++k) {
      const Vec<T> r = broadcast(coefficients[k * kMostRows + i]);
      RESCALED_UNROLL for (int c = 0; c < kColumns; ++c) sum[k][c] += r * x[c];
    }
  }
  RESCALED_UNROLL for (int k = 0; k < kCount; ++k) RESCALED_UNROLL for (int c = 0; c < kColumns; ++c)
      store(acc + k * ld + j + c * kLanes<T>, sum[k][c]);
}

// `next`: the following block in memory, or null. acc: [kCount][ld], ld a multiple of the lanes.
template <class T, int kCount>
static void add_weighted_rows(Rows<T> a, int64_t rows, int64_t columns, const T* coefficients, T* acc, int64_t ld,
                              const char* next) {
  constexpr int wide = kCount <= 2 ? 4 : kCount <= 4 ? 3 : 2;
  const int64_t size = sizeof(T), next_ld = a.ld * size, next_bytes = columns * size;
  int64_t j = 0;
  for (; j + wide * kLanes<T> <= columns; j += wide * kLanes<T>) {
    add_columns<T, kCount, wide, false>(a, rows, j, 0, coefficients, acc, ld, next, next_ld, next_bytes);
    next = nullptr;
  }
  for (; j + kLanes<T> <= columns; j += kLanes<T>) {
    add_columns<T, kCount, 1, false>(a, rows, j, 0, coefficients, acc, ld, next, next_ld, next_bytes);
    next = nullptr;
  }
  if (j < columns) add_columns<T, kCount, 1, true>(a, rows, j, columns - j, coefficients, acc, ld, next, next_ld, next_bytes);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
