// SPDX-License-Identifier: BSD-3-Clause
// One pass over the rows of A in blocks that stay in the second-level cache: logits by products of rows, then sums of
// rows.
#pragma once
#include <utility>

#include "rows.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Chunks of rows are the unit of work, and of the fixed order in which sums are joined: by shape alone.
struct Chunks {
  int64_t count, rows;  // of a problem; rows of each but the last
  explicit Chunks(const RegressionParameters& p, int64_t work_per_row, int64_t most = 64, int64_t least = 1) {
    const int64_t by_work = (int64_t{1} << 16) / (work_per_row + 1) + 1, least_rows = by_work > least ? by_work : least;
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

template <class T>
inline constexpr int kRowUnit = kLanes<T> > kStreams ? kLanes<T> : kStreams;
// Rows of a block: 192 KB of A in the second-level cache. Measured on 512 KB: blocks of the first-level cache leave
// more of the time to the rows between (0.55 to 0.7 of a pure read's speed instead of 0.75 to 1), and neither asking
// for the next block ahead of time nor its logits beside this one's sums gain anything on top of eight streams.
template <class T>
RESCALED_INLINE int64_t block_rows(const RegressionParameters& p) {
  const int64_t fit = 192 * 1024 / static_cast<int64_t>(sizeof(T)) / (p.columns > 0 ? p.columns : 1),
                rows = fit / kRowUnit<T> * kRowUnit<T>;
  return rows < kRowUnit<T> ? kRowUnit<T> : rows < kMostRows ? rows : kMostRows;
}

// Calls f(block) for the blocks of rows [begin, end): first most of them in streams, then what is left over.
template <class Function>
RESCALED_INLINE void for_blocks(int64_t begin, int64_t end, int64_t rows, Function f) {
  const int64_t apart = end - begin < 2 * kMostRows ? 0 : (end - begin) / kStreams, each = rows / kStreams;
  for (int64_t i = 0; i < apart; i += each)
    f(Block{begin + i, (apart - i < each ? apart - i : each) * kStreams, 1, apart});
  for (int64_t i = begin + apart * kStreams; i < end; i += rows)
    f(Block{i, end - i < rows ? end - i : rows, kStreams, 1});
}

// The rows of a block in memory; row r as in Block, strides in elements.
template <class T>
struct BlockRows {
  const T* data;
  int64_t step, apart;
  const T* row(int64_t r) const { return data + r / kStreams * step + r % kStreams * apart; }
};
// In place, or packed into `scratch` [block rows][columns].
template <class T>
RESCALED_INLINE bool reads_in_place(const RegressionParameters& p) {
  return in_place<T>(InputView{p.A.data, p.A.dtype, p.A.row, p.A.column}, 1, p.columns, 1, 1);
}
template <class T>
static void pack_block(InputView m, Block b, int64_t columns, int64_t ld, T* to) {
  for (int64_t r = 0; r < b.count; ++r) pack_rows<T>(from_row(m, b.row(r)), 1, columns, T(1), to + r * ld, 1, ld);
}
template <class T>
RESCALED_INLINE BlockRows<T> block_of(const RegressionParameters& p, InputView m, Block b, T* scratch) {
  if (reads_in_place<T>(p)) return {static_cast<const T*>(from_row(m, b.first).data), b.step * m.row, b.apart * m.row};
  pack_block<T>(m, b, p.columns, p.columns, scratch);
  return {scratch, kStreams * p.columns, p.columns};
}

// Lanes with bit kBit come from y, the others from x: the sums of pairs of lanes, two vectors in one.
template <class T, int kBit, int... kLane>
RESCALED_INLINE Vec<T> pair_sums(Vec<T> x, Vec<T> y, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(x, y, (kLane & kBit ? kLanes<T> : 0) + kLane...) +
         __builtin_shufflevector(x, y, (kLane & kBit ? kLanes<T> : 0) + (kLane ^ kBit)...);
}
// Lane i of the result is the sum over the lanes of x[i].
template <class T, int kBit = kLanes<T> / 2>
RESCALED_INLINE Vec<T> transposed_sum(Vec<T> (&x)[kLanes<T>]) {
  RESCALED_UNROLL for (int i = 0; i < kBit; ++i) x[i] =
      pair_sums<T, kBit>(x[i], x[i + kBit], std::make_integer_sequence<int, kLanes<T>>());
  if constexpr (kBit > 1) return transposed_sum<T, kBit / 2>(x);
  return x[0];
}

// s[i] += row i times vector, lane by lane, for a few rows at once.
template <class T, int kRows>
RESCALED_INLINE void multiply_rows(const T* const (&row)[kRows], const T* vector, int64_t columns, Vec<T> (&s)[kRows]) {
  int64_t j = 0;
  for (; j + kLanes<T> <= columns; j += kLanes<T>) {
    const Vec<T> x = load(vector + j);
    RESCALED_UNROLL for (int i = 0; i < kRows; ++i) s[i] += load(row[i] + j) * x;
  }
  if (j == columns) return;
  const Vec<T> x = load(vector + j);
  RESCALED_UNROLL for (int i = 0; i < kRows; ++i) s[i] += load_first(row[i] + j, columns - j) * x;
}

// out[i] = row i times vector (which zeros follow), for whole units of rows. `rows`: those that exist; the last is
// repeated.
template <class T>
static void products_of_rows(BlockRows<T> a, int64_t rows, int64_t padded, int64_t columns, const T* vector, T* out) {
  constexpr int unit = kLanes<T> < 8 ? kLanes<T> : 8;  // 8 accumulators
  for (int64_t first = 0; first < padded; first += kLanes<T>) {
    Vec<T> sums[kLanes<T>];
    RESCALED_UNROLL for (int g = 0; g < kLanes<T>; g += unit) {
      const T* row[unit];
      RESCALED_UNROLL for (int i = 0; i < unit; ++i) {
        const int64_t at = first + g + i;
        row[i] = a.row(at < rows ? at : rows - 1);
      }
      Vec<T> s[unit] = {};
      multiply_rows<T, unit>(row, vector, columns, s);
      RESCALED_UNROLL for (int i = 0; i < unit; ++i) sums[g + i] = s[i];
    }
    store(out + first, transposed_sum<T>(sums));
  }
}

// acc[k][j] += sum over rows of coefficients[k][row] a[row][j], for kColumns vectors of columns; with kTail the last
// has `left` columns.
template <class T, int kCount, int kColumns, bool kTail>
static __attribute__((noinline)) void add_columns(BlockRows<T> a, int64_t rows, int64_t left, const T* coefficients,
                                                  T* acc, int64_t ld) {
  Vec<T> sum[kCount][kColumns];
  RESCALED_UNROLL for (int k = 0; k < kCount; ++k) RESCALED_UNROLL for (int c = 0; c < kColumns; ++c) sum[k][c] =
      load(acc + k * ld + c * kLanes<T>);
  for (int64_t first = 0; first < rows; first += kStreams, a.data += a.step) {
    const int64_t last = first + kStreams < rows ? first + kStreams : rows;
    const T* row = a.data;
    for (int64_t i = first; i < last; ++i, row += a.apart) {
      // The coefficients stay in registers, a column is used at once: 12 sums, 3 coefficients and a column fill 16.
      Vec<T> r[kCount];
      RESCALED_UNROLL for (int k = 0; k < kCount; ++k) r[k] = broadcast(coefficients[k * kMostRows + i]);
      RESCALED_UNROLL for (int c = 0; c < kColumns; ++c) {
        const Vec<T> x = kTail && c == kColumns - 1 ? load_first(row + c * kLanes<T>, left) : load(row + c * kLanes<T>);
        RESCALED_UNROLL for (int k = 0; k < kCount; ++k) sum[k][c] += r[k] * x;
      }
    }
  }
  RESCALED_UNROLL for (int k = 0; k < kCount; ++k) RESCALED_UNROLL for (int c = 0; c < kColumns; ++c)
      store(acc + k * ld + c * kLanes<T>, sum[k][c]);
}

// acc: [kCount][ld], ld a multiple of the lanes.
template <class T, int kCount>
static void add_weighted_rows(BlockRows<T> a, int64_t rows, int64_t columns, const T* coefficients, T* acc,
                              int64_t ld) {
  if constexpr (kCount > 4) {  // twice through the cache is faster than sums that leave the registers
    add_weighted_rows<T, 3>(a, rows, columns, coefficients, acc, ld);
    add_weighted_rows<T, kCount - 3>(a, rows, columns, coefficients + 3 * kMostRows, acc + 3 * ld, ld);
    return;
  }
  constexpr int wide = kCount == 1 ? 8 : kCount <= 3 ? 4 : 2;
  const auto add = [&](auto count, auto tail, int64_t left) {
    add_columns<T, kCount, decltype(count)::value, decltype(tail)::value>(a, rows, left, coefficients, acc, ld);
    a.data += decltype(count)::value * kLanes<T>, acc += decltype(count)::value * kLanes<T>;
  };
  for (; columns >= wide * kLanes<T>; columns -= wide * kLanes<T>) add(Constant<wide>(), Constant<false>(), 0);
  if constexpr (wide > 4)
    if (columns >= 4 * kLanes<T>) add(Constant<4>(), Constant<false>(), 0), columns -= 4 * kLanes<T>;
  if constexpr (wide > 2)
    if (columns >= 2 * kLanes<T>) add(Constant<2>(), Constant<false>(), 0), columns -= 2 * kLanes<T>;
  if (columns >= kLanes<T>) add(Constant<1>(), Constant<false>(), 0), columns -= kLanes<T>;
  if (columns > 0) add(Constant<1>(), Constant<true>(), columns);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
