// SPDX-License-Identifier: BSD-3-Clause
// One block's walk (plan.h): its place, the factors it holds and meets, their products, a warp's 16 rows at a time.
#pragma once
#include "../../attention/cuda/tile.cuh"
#include "plan.h"
#include "product.cuh"

namespace rescaled {
namespace {

// What a block must know of a problem, in shared memory: registers are for the products.
struct MapProblem {
  InputView row[kFactors], column[kFactors];  // the block's side, and the other
  InputView mask, dense, rows, columns, values, tangent_target;
  InputView saved, saved_tangents, weight, moment_p, moment_q;
};
constexpr int kMapViews = 2 * kFactors + 11;
static_assert(sizeof(MapProblem) == kMapViews * sizeof(InputView) && sizeof(MapProblem) <= kMapProblemBytes);

RESCALED_DEVICE const Input* view_source(const MatrixRegressionParameters& p, bool by_columns, int i) {
  if (i < 2 * kFactors) return factors_of(p, (i < kFactors) == by_columns, i % kFactors);
  switch (i - 2 * kFactors) {
    case 0:
      return &p.scores.mask;
    case 1:
      return &p.target;
    case 2:
      return &p.target_rows;
    case 3:
      return &p.target_columns;
    case 4:
      return &p.target_values;
    case 5:
      return &p.tangent_target;
    case 6:
      return &p.saved_statistics;
    case 7:
      return &p.saved_tangents;
    case 8:
      return &p.weight;
    case 9:
      return &p.moment_p;
    default:
      return &p.moment_q;
  }
}

template <class T>
RESCALED_DEVICE T at(InputView m, int64_t row, int64_t column) {
  return static_cast<const T*>(m.data)[row * m.row + column * m.column];
}

template <class T, MatrixPass kPass>
struct MapWalk {
  static constexpr bool kByColumns = by_columns(kPass);
  static constexpr int kColumns = kTileColumns<T>, kTiles = kColumns / 8;
  static constexpr int kOutColumns = kOutputColumns<T>, kOut = kOutColumns / 8;
  using Tile = T[kTiles][4];
  using Outputs = T[kOut][4];

  const MatrixRegressionParameters& p;
  const MapPlan& plan;
  MapProblem& problem;
  T* const shared;
  const MapLayout layout;
  const int row_warp, column_warp, g, t;
  const int row_count, column_count;
  int first_row = 0, first_output = 0;  // of the block: its rows, the columns of its output
  int64_t batch = 0;

  RESCALED_MEMBER MapWalk(const MatrixRegressionParameters& parameters, const MapPlan& plan, unsigned char* memory)
      : p(parameters),
        plan(plan),
        problem(*reinterpret_cast<MapProblem*>(memory)),
        shared(reinterpret_cast<T*>(memory + kMapProblemBytes)),
        layout(map_layout<T>(parameters, kPass, plan)),
        row_warp(thread_index() / 32 % plan.row_warps),
        column_warp(thread_index() / 32 / plan.row_warps),
        g(thread_index() % 32 / 4),
        t(thread_index() % 4),
        row_count(static_cast<int>(kByColumns ? parameters.scores.keys : parameters.scores.queries)),
        column_count(static_cast<int>(kByColumns ? parameters.scores.queries : parameters.scores.keys)) {
    const int row_blocks = static_cast<int>(plan.row_blocks), chunks = static_cast<int>(plan.output_chunks);
    const int block = block_index() / chunks % row_blocks;
    first_output = block_index() % chunks * kOutColumns;
    // The longest blocks of a causal map come first.
    first_row = (p.scores.causal && !kByColumns ? row_blocks - 1 - block : block) * block_rows(plan);
    batch = block_index() / (chunks * row_blocks);
    if (thread_index() < kMapViews) {
      const Input* m = view_source(p, kByColumns, thread_index());
      reinterpret_cast<InputView*>(memory)[thread_index()] =
          m != nullptr ? matrix(*m, p.scores, batch) : InputView{nullptr, DType::float32, 0, 0};
    }
    block_barrier();
  }

  // Row x / 2 (0, 1) of this thread, and column x % 2 of its tile j, in the whole problem.
  RESCALED_MEMBER int row(int x) const { return first_row + row_warp * kWarpRows + g + x / 2 * 8; }
  RESCALED_MEMBER int column(int first, int j, int x) const { return first + 8 * j + 2 * t + x % 2; }
  RESCALED_MEMBER int map_row(int first, int j, int x) const { return kByColumns ? column(first, j, x) : row(x); }
  RESCALED_MEMBER int map_column(int first, int j, int x) const { return kByColumns ? row(x) : column(first, j, x); }

  // Whether all elements of a tile take part.
  RESCALED_MEMBER bool is_whole(int first) const {
    const int rows = block_rows(plan);
    if (problem.mask.data != nullptr || first_row + rows > row_count || first + kColumns > column_count) return false;
    return !p.scores.causal || (kByColumns ? first_row + rows - 1 <= first : first + kColumns - 1 <= first_row);
  }
  RESCALED_MEMBER bool visible(int first, int j, int x) const {
    const int query = map_row(first, j, x), key = map_column(first, j, x);
    if (row(x) >= row_count || column(first, j, x) >= column_count || (p.scores.causal && key > query)) return false;
    return problem.mask.data == nullptr || at<bool>(problem.mask, query, key);
  }
  // Which of this thread's elements take part: bit 4 j + x.
  RESCALED_MEMBER uint32_t visible(int first) const {
    uint32_t bits = ~0u;
    if (!is_whole(first))
      RESCALED_UNROLL for (int j = 0; j < kTiles; ++j)
          RESCALED_UNROLL for (int x = 0; x < 4; ++x) if (!visible(first, j, x)) bits &= ~(1u << (4 * j + x));
    return bits;
  }

  // Calls step(first, stage) for the warp's part of every stage of columns that some row of the block takes part with,
  // after load(first of all, stage), and with the resident factors in shared memory: one ahead where there are two
  // stages.
  template <class Load, class Step>
  RESCALED_MEMBER void each_tile(Load load, Step step) const {
    const int columns = block_columns<T>(plan), begin = p.scores.causal && kByColumns ? first_row / columns : 0;
    const int last_row = least(first_row + block_rows(plan), row_count);
    const int end = p.scores.causal && !kByColumns ? least(column_count, last_row) : column_count;
    const int count = (end + columns - 1) / columns, ahead = plan.stages - 1;
    load_side(layout.row, 0, problem.row, block_rows(plan), first_row, row_count);
    RESCALED_ROLLED for (int i = begin - ahead; i < count; ++i) {
      const int next = i + ahead;
      if (next < count) {
        load_side(layout.column, next & ahead, problem.column, columns, next * columns, column_count);
        load(next * columns, next & ahead);
      }
      copy_commit();
      if (i < begin) continue;
      if (ahead > 0)
        copy_wait<1>();
      else
        copy_wait<0>();
      block_barrier();
      step(i * columns + column_warp * kColumns, i & ahead);
      block_barrier();
    }
    copy_wait<0>();
    block_barrier();
  }
  template <class Step>
  RESCALED_MEMBER void each_tile(Step step) const {
    each_tile([](int, int) {}, step);
  }

  // acc = (row factors r) (column factors c)^T, or with kAdds acc += it; absent factors are zero.
  template <bool kAdds = false>
  RESCALED_MEMBER void product(Tile& acc, int r, int c, int first, int stage) const {
    if constexpr (!kAdds)
      RESCALED_UNROLL for (int j = 0; j < kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) acc[j][x] = T(0);
    if (layout.row[r] < 0 || layout.column[c] < 0) return;
    const int width = static_cast<int>(depth_of(p, r)), step = plan.resident ? width : kChunk, ld = tile_ld<T>(step);
    T *const rows = shared + layout.row[r], *const columns = column_tile(c, stage);
    RESCALED_ROLLED for (int d = 0; d < width; d += step) {
      const int part = least(width - d, step);
      if (!plan.resident) {
        load_tile<T>(rows, ld, block_rows(plan), problem.row[r], first_row, row_count, d, part);
        load_columns(columns, ld, c, first, d, part);
        arrive();
      }
      chain_rows<kTiles, kByColumns>(acc, rows + row_warp * kWarpRows * ld, ld, columns + column_warp * kColumns * ld,
                                     ld, static_cast<int>(round_up(part, 16)));
      if (!plan.resident) block_barrier();
    }
  }

  // out += weights (columns [first_output, first_output + kOutColumns) of column factors c)
  RESCALED_MEMBER void accumulate(Outputs& out, const Tile& weights, int c, int first, int stage) const {
    static_assert(kOutColumns <= kChunk);
    if (layout.column[c] < 0) return;
    const int width = static_cast<int>(depth_of(p, c)), part = least(width - first_output, kOutColumns);
    T* const columns = column_tile(c, stage);
    const int ld = tile_ld<T>(plan.resident ? width : kChunk);
    if (!plan.resident) {
      load_columns(columns, ld, c, first, first_output, part);
      arrive();
    }
    chain_weights<kTiles, kOut>(out, weights,
                                columns + column_warp * kColumns * ld + (plan.resident ? first_output : 0), ld, part);
    if (!plan.resident) block_barrier();
  }

  // What each warp of a group of rows has found, for all of them; after the tiles, whose memory it takes.
  template <int kCount>
  RESCALED_MEMBER void share(const T (&mine)[kCount]) const {
    static_assert(kCount <= kJoined<T>);
    RESCALED_UNROLL for (int i = 0; i < kCount; ++i) shared_number(column_warp, i) = mine[i];
    block_barrier();
  }
  RESCALED_MEMBER T& shared_number(int of_column_warp, int i) const {
    const int warp = of_column_warp * plan.row_warps + row_warp;
    return shared[(warp * kJoined<T> + i) * 32 + 4 * g + t];
  }
  // Sums of what they have found, for all of them.
  template <int kCount>
  RESCALED_MEMBER void join(T (&sum)[kCount]) const {
    if (plan.column_warps == 1) return;
    share(sum);
    RESCALED_UNROLL for (int i = 0; i < kCount; ++i) {
      T all = shared_number(0, i);
      RESCALED_ROLLED for (int w = 1; w < plan.column_warps; ++w) all += shared_number(w, i);
      sum[i] = all;
    }
    block_barrier();
  }

  RESCALED_MEMBER void store(Outputs& out, const Output& to) const {
    join(reinterpret_cast<T(&)[4 * kOut]>(out));
    if (column_warp != 0) return;
    const OutputView m = matrix(to, p.scores, batch);
    RESCALED_UNROLL for (int j = 0; j < kOut; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
      const int c = column(first_output, j, x);
      if (row(x) < row_count && c < p.scores.head_size)
        static_cast<T*>(m.data)[row(x) * m.row + c * m.column] = out[j][x];
    }
  }

 private:
  RESCALED_MEMBER T* column_tile(int c, int stage) const { return shared + layout.column[c] + stage * layout.stage; }
  RESCALED_MEMBER void load_columns(T* to, int ld, int c, int first, int d, int part) const {
    load_tile<T>(to, ld, block_columns<T>(plan), problem.column[c], first - column_warp * kColumns, column_count, d,
                 part);
  }
  // Rows [first, first + tile_rows) of all factors of a side, zeros beyond `count`.
  RESCALED_MEMBER void load_side(const int (&to)[kFactors], int stage, const InputView (&from)[kFactors], int tile_rows,
                                 int first, int count) const {
    RESCALED_UNROLL for (int i = 0; i < kFactors; ++i) {
      if (!plan.resident || to[i] < 0) continue;
      const int64_t width = depth_of(p, i);
      const InputView& m = from[i];
      T* const tile = shared + to[i] + stage * layout.stage;
      constexpr int kVector = 16 / sizeof(T);
      const int shift = plan.shift[i], ld = tile_ld<T>(width);
      if (shift < 0 || m.column != 1 || m.row % kVector != 0 || bits_as<uint64_t>(m.data) % 16 != 0) {
        load_tile<T>(tile, ld, tile_rows, m, first, count, 0, width);
        continue;
      }
      int r = thread_index() >> shift;
      const int step = block_threads() >> shift, c = (thread_index() & ((1 << shift) - 1)) * kVector;
      const T* in = static_cast<const T*>(m.data) + (first + r) * m.row + c;
      T* out = tile + r * ld + c;
      RESCALED_ROLLED for (; r < tile_rows; r += step, in += step * m.row, out += step * ld)
          copy_async_or_zero(out, in, first + r < count);
    }
  }
  RESCALED_MEMBER void arrive() const {
    copy_commit();
    copy_wait<0>();
    block_barrier();
  }
};

}  // namespace
}  // namespace rescaled
