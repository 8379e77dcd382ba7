// SPDX-License-Identifier: BSD-3-Clause
// The loop that forward and JVP share: a task is a few panels of queries (the lanes) that walk the keys in blocks.
#pragma once
#include "../../cpu/arena.h"
#include "block.h"

namespace rescaled::RESCALED_ISA {
namespace {

// A block of scores, 12 KB in float, shares the first-level cache with the query panel: 64 keys are 10 % faster than
// 256 on a 48 KB cache (Sapphire Rapids, measured), and no slower elsewhere.
constexpr int64_t kKeyBlock = 64;
constexpr int kPanelsPerTask = 4;

// Keys and values that must be converted or copied are packed once for all panels of a task; in place, one panel a task
// balances better.
template <class T>
RESCALED_INLINE bool packs(const AttentionParameters& p) {
  const auto direct = [](const Input& m, int64_t columns, int64_t whole_columns) {
    return !m || in_place<T>(InputView{m.data, m.dtype, m.row, m.column}, kKeyBlock, columns, kTileRows, whole_columns);
  };
  return !(direct(p.key, p.head_size, 1) && direct(p.value, p.value_size, kTileRows) &&
           direct(p.tangent_key, p.head_size, 1) && direct(p.tangent_value, p.value_size, kTileRows));
}
template <class T>
RESCALED_INLINE int panels_per_task(const AttentionParameters& p) {
  return packs<T>(p) ? kPanelsPerTask : 1;
}

// Of a panel that starts at query `first`: its queries, and its lanes in whole vectors.
template <class T>
RESCALED_INLINE int64_t panel_count(const AttentionParameters& p, int64_t first) {
  const int64_t left = p.queries - first, full = kTileVectors * kLanes<T>;
  return left < full ? left : full;
}
template <class T>
RESCALED_INLINE int64_t panel_lanes(int64_t count) {
  return round_up(count, kLanes<T>);
}
template <class T, class Function>
RESCALED_INLINE void with_vectors(int64_t count, Function f) {
  if (count > 2 * kLanes<T>)
    f(Constant<3>());
  else if (count > kLanes<T>)
    f(Constant<2>());
  else
    f(Constant<1>());
}

struct PanelTask {
  int64_t batch, first, lanes;
  int panels;
};
template <class T>
RESCALED_INLINE int64_t panel_blocks(const AttentionParameters& p) {
  const int64_t per_task = panels_per_task<T>(p) * kTileVectors * kLanes<T>;
  return (p.queries + per_task - 1) / per_task;
}
template <class T>
RESCALED_INLINE int64_t panel_tasks(const AttentionParameters& p) {
  return p.kv_batches * p.group * panel_blocks<T>(p);
}
template <class T>
RESCALED_INLINE PanelTask panel_task(const AttentionParameters& p, int64_t task) {
  const int64_t blocks = panel_blocks<T>(p), lanes = kTileVectors * kLanes<T>, per_task = panels_per_task<T>(p) * lanes;
  int64_t block = task % blocks;
  if (p.causal) block = blocks - 1 - block;  // the longest first
  const int64_t first = block * per_task, left = p.queries - first, count = left < per_task ? left : per_task;
  return {task / blocks, first, lanes, static_cast<int>((count + lanes - 1) / lanes)};
}

// Where keys and values are packed when they cannot be read in place.
template <class T>
struct PanelScratch {
  T *keys, *values;
  PanelScratch(const AttentionParameters& p, Arena& arena)
      : keys(arena.take<T>(kKeyBlock * p.head_size)),
        values(arena.take<T>(kKeyBlock * round_up(p.value_size, kTileRows))) {}
};
template <class T>
RESCALED_INLINE Rows<T> key_rows(const AttentionParameters& p, InputView key, int64_t first, int64_t rows, T* scratch) {
  return rows_of<T>(from_row(key, first), rows, p.head_size, kTileRows, 1, scratch);
}
template <class T>
RESCALED_INLINE Rows<T> value_rows(const AttentionParameters& p, InputView value, int64_t first, int64_t rows,
                                   T* scratch) {
  return rows_of<T>(from_row(value, first), rows, p.value_size, 1, kTileRows, scratch);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
