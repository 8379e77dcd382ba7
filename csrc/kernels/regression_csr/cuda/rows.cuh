// SPDX-License-Identifier: BSD-3-Clause
// Rows of a sparse A, each read by some lanes of a warp.
#pragma once
#include <type_traits>

#include "../../element.h"
#include "atomics.cuh"
#include "passes.cuh"

namespace rescaled {
namespace {

// Of the arithmetic.
template <class T>
using Number = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T, class Index>
struct SparseRows {
  const T* values;
  const Index *crow, *col;
  int64_t count, columns, nonzeros;
  RESCALED_MEMBER SparseRows(const CsrParameters& p, int64_t batch)
      : values(static_cast<const T*>(matrix(p.A, p, batch).data)),
        crow(static_cast<const Index*>(p.crow) + batch_offset(p, p.crow_batch, batch)),
        col(static_cast<const Index*>(p.col) + batch_offset(p, p.col_batch, batch)),
        count(p.rows),
        columns(p.columns),
        nonzeros(p.nonzeros) {}

  struct Span {
    int64_t begin, end;
    bool good;  // else nothing of the row may be read
  };
  RESCALED_MEMBER Span span(int64_t row) const {
    const int64_t begin = crow[row], end = crow[row + 1];
    const bool good = begin >= 0 && begin <= end && end <= nonzeros && (row != 0 || begin == 0) &&
                      (row + 1 != count || end == nonzeros);
    return {begin, good ? end : begin, good};
  }
  RESCALED_MEMBER bool has(Index column) const {
    return static_cast<std::make_unsigned_t<Index>>(column) < static_cast<uint64_t>(columns);
  }
};

// The values of a lane: k, k + lanes, ...; it asks for kAtOnce of them before it waits. Calls f(column, value) and
// returns whether all columns are there.
template <int kAtOnce, class T, class Index, class Function>
RESCALED_DEVICE bool for_values(const SparseRows<T, Index>& a, int64_t k, int64_t end, int lanes, Function f) {
  bool inside = true;
  for (; k < end; k += kAtOnce * lanes) {
    Index column[kAtOnce];
    T value[kAtOnce];
    RESCALED_UNROLL for (int i = 0; i < kAtOnce; ++i) {
      if (k + i * lanes >= end) continue;
      column[i] = load_once(a.col + k + i * lanes), value[i] = load_once(a.values + k + i * lanes);
    }
    RESCALED_UNROLL for (int i = 0; i < kAtOnce; ++i) {
      if (k + i * lanes >= end) continue;
      if (a.has(column[i]))
        f(int64_t{column[i]}, Number<T>{value_of(value[i])});
      else
        inside = false;
    }
  }
  return inside;
}

// Calls f(row, lane of the group) for the rows of a block's chunk.
template <class Function>
RESCALED_DEVICE void for_rows(const CsrParameters& p, const WalkPlan& plan, Function f) {
  const int64_t chunk = block_index() % plan.chunks, first = chunk * plan.chunk_rows;
  const int64_t last = first + plan.chunk_rows < p.rows ? first + plan.chunk_rows : p.rows;
  const int groups = kThreads / plan.lanes;
  for (int64_t row = first + thread_index() / plan.lanes; row < last; row += groups)
    f(row, thread_index() % plan.lanes);
}

}  // namespace
}  // namespace rescaled
