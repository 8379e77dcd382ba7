// SPDX-License-Identifier: BSD-3-Clause
// One block's part of A^T diag(D) A: a tile of the result, of a chunk of rows, which pass through shared memory in
// stages; the next one is loaded while this one is multiplied. Where the tile is on the diagonal the block also sums
// what else is asked of its columns.
#pragma once
#include "gram_plan.h"
#include "rows.cuh"

namespace rescaled {
namespace {

// Of a row in shared memory: D, and the coefficients of the sides.
template <class S>
struct alignas(16) GramRow {
  S of[kSides], diagonal;
};
template <class S>
struct alignas(16) Quad {
  S x[4];
};

template <class T>
struct GramMemory {
  using S = Number<T>;
  static constexpr int kRows = kStageRows<T>;
  double total[kTile * kTile], side[kSides * kTile];
  InputView A, resident;  // here, not in registers: those are for the products
  const S* diagonal;
  GramRow<S> rows[3][kRows];  // read beside a stage, and written for the one after the next
  alignas(16) S left[2][kRows * kTile], right[2][kRows * kTile];  // A's rows; D times them
};

template <class T, bool kWhole>
struct GramBlock {
  using S = Number<T>;
  using Memory = GramMemory<T>;
  static constexpr int kRows = kStageRows<T>, kWide = kWidth<T, kWhole>, kPerRow = kTile / kWide;
  static constexpr int kStep = kGramThreads / kPerRow, kPacks = kRows / kStep;  // rows between a thread's packs
  static constexpr int kSideGroups = kGramThreads / kTile;  // of threads that share a stage's rows for the sides
  static_assert(kPacks * kStep == kRows && kRows % kSideGroups == 0 && kSideGroups * kSides <= 2 * kRows);
  const RegressionParameters& p;
  const GramPlan& plan;
  Memory& memory;
  int64_t chunk, batch, begin;
  int left_panel, right_panel;
  Pack<T, kWhole> left[kPacks], right[kPacks];
  GramRow<S> next_row;
  S acc[8][4] = {}, side[kSides] = {};

  RESCALED_MEMBER GramBlock(const RegressionParameters& parameters, const GramPlan& the_plan, unsigned char* shared)
      : p(parameters), plan(the_plan), memory(*reinterpret_cast<Memory*>(shared)) {
    int64_t tile = block_index() % plan.tiles;
    chunk = block_index() / plan.tiles % plan.chunks, batch = block_index() / plan.tiles / plan.chunks;
    for (left_panel = 0; tile > left_panel; ++left_panel) tile -= left_panel + 1;
    right_panel = static_cast<int>(tile);
    begin = chunk * plan.stages * kRows;
    if (thread_index() == 0) {
      memory.A = matrix(p.A, p, batch), memory.resident = matrix(p.resident_rows, p, batch);
      memory.diagonal = reinterpret_cast<const S*>(static_cast<char*>(p.workspace) + plan.diagonal) + batch * p.rows;
    }
    block_barrier();
  }
  RESCALED_MEMBER bool on_diagonal() const { return left_panel == right_panel; }
  RESCALED_MEMBER Columns<T, kWhole> columns(int panel) const {
    return {panel * kTile, thread_index() % kPerRow, kPerRow, static_cast<int>(p.columns)};
  }

  RESCALED_MEMBER void load_panel(int panel, int64_t first, Pack<T, kWhole> (&to)[kPacks]) const {
    const Columns<T, kWhole> at = columns(panel);
    const InputView A = memory.A;
    RESCALED_UNROLL for (int i = 0; i < kPacks; ++i) {
      const int64_t row = first + thread_index() / kPerRow + i * kStep;
      to[i] = at.load(static_cast<const T*>(A.data) + (row < p.rows ? row : p.rows - 1) * A.row, A.column);
    }
  }
  RESCALED_MEMBER void load(int64_t stage) {
    load_panel(left_panel, begin + stage * kRows, left);
    if (!on_diagonal()) load_panel(right_panel, begin + stage * kRows, right);
  }
  // What row thread_index() of a stage brings; zero beyond the last.
  RESCALED_MEMBER void load_row(int64_t stage) {
    using Values = RegressionRows;
    const int64_t i = begin + stage * kRows + thread_index();
    next_row = {};
    if (thread_index() >= kRows || i >= p.rows) return;
    if (!plan.resident) {
      next_row.diagonal = memory.diagonal[i];
      return;
    }
    const InputView rows = memory.resident;
    const auto value = [&](int64_t k) { return static_cast<const S*>(rows.data)[k * rows.row + i * rows.column]; };
    next_row.diagonal = value(Values::diagonal);
    next_row.of[0] = value(Values::gradient), next_row.of[1] = value(Values::p);
    next_row.of[2] = value(Values::q), next_row.of[3] = value(Values::noise);
    if (p.curvature == Curvature::gauss_newton) return;
    const S rest = value(Values::diagonal_rest);
    const bool full = p.curvature == Curvature::full;
    if (full || rest > S(0)) next_row.diagonal += rest;
    if (full) next_row.of[2] += value(Values::q_rest);
  }
  RESCALED_MEMBER void store_row(int64_t stage) const {
    if (thread_index() < kRows) memory.rows[stage % 3][thread_index()] = next_row;
  }
  RESCALED_MEMBER void store(int64_t stage) {
    const int buffer = static_cast<int>(stage % 2), apart = kWhole ? 1 : kPerRow;
    RESCALED_UNROLL for (int i = 0; i < kPacks; ++i) {
      const int r = thread_index() / kPerRow + i * kStep, lane = thread_index() % kPerRow;
      const GramRow<S>& row = memory.rows[stage % 3][r];
      S* const to_left = memory.left[buffer] + r * kTile + (kWhole ? lane * kWide : lane);
      S* const to_right = memory.right[buffer] + r * kTile + (kWhole ? lane * kWide : lane);
      RESCALED_UNROLL for (int e = 0; e < kWide; ++e) {
        const S a = value_of(left[i].x[e]);
        to_left[e * apart] = a;
        to_right[e * apart] = row.diagonal * (on_diagonal() ? a : value_of(right[i].x[e]));
      }
    }
  }

  // A warp's part of the tile, 32 x 32, and which rows of a stage it adds up: those of its group.
  struct Share {
    int row, column, group, groups;
  };
  RESCALED_MEMBER Share share() const {
    const int warp = thread_index() / 32;
    const bool small = p.columns <= kTile / 2;
    const int parts = !on_diagonal() ? 4 : small ? 1 : 3, part = warp % parts;
    Share s{0, 0, warp / parts, kGramWarps / parts};
    if (on_diagonal())
      s.row = part > 0 ? 32 : 0, s.column = part > 1 ? 32 : 0;
    else
      s.row = part / 2 * 32, s.column = part % 2 * 32;
    return s;
  }
  RESCALED_MEMBER void multiply(int64_t stage, const Share& s) {
    const int lane = thread_index() % 32;
    const S* const a = memory.left[stage % 2] + s.row + lane / 8 * 8;
    const S* const b = memory.right[stage % 2] + s.column + lane % 8 * 4;
    RESCALED_ROLLED for (int first = s.group; first < kRows; first += 2 * s.groups)
        RESCALED_UNROLL for (int half = 0; half < 2; ++half) {
      const int k = first + half * s.groups;
      const Quad<S> low = *reinterpret_cast<const Quad<S>*>(a + k * kTile),
                    high = *reinterpret_cast<const Quad<S>*>(a + k * kTile + 4),
                    right_row = *reinterpret_cast<const Quad<S>*>(b + k * kTile);
      RESCALED_UNROLL for (int y = 0; y < 8; ++y) RESCALED_UNROLL for (int x = 0; x < 4; ++x) acc[y][x] +=
          (y < 4 ? low.x[y] : high.x[y - 4]) * right_row.x[x];
    }
  }

  RESCALED_MEMBER bool has_sides() const { return plan.resident && on_diagonal(); }
  RESCALED_MEMBER void add_sides(int64_t stage) {
    const int column = thread_index() % kTile;
    RESCALED_ROLLED for (int r = thread_index() / kTile; r < kRows; r += kSideGroups) {
      const GramRow<S> row = memory.rows[stage % 3][r];
      const S a = memory.left[stage % 2][r * kTile + column];
      RESCALED_UNROLL for (int k = 0; k < kSides - 1; ++k) side[k] += row.of[k] * a;
      side[kSides - 1] += row.of[kSides - 1] * a * a;
    }
  }

  // Adds what is summed in T to the sums in float64, in a fixed order. All threads; no stage is in shared memory.
  RESCALED_MEMBER void flush(const Share& s) {
    const int lane = thread_index() % 32;
    RESCALED_ROLLED for (int group = 0; group < s.groups; ++group) {
      block_barrier();
      if (group != s.group) continue;
      RESCALED_UNROLL for (int y = 0; y < 8; ++y) {
        double* const to = memory.total + (s.row + lane / 8 * 8 + y) * kTile + s.column + lane % 8 * 4;
        RESCALED_UNROLL for (int x = 0; x < 4; ++x) to[x] += static_cast<double>(acc[y][x]), acc[y][x] = S(0);
        warp_barrier();  // a few numbers at a time: all at once would want too many registers
      }
    }
    if (!has_sides()) return;
    S* const all = memory.left[0];  // [kSideGroups][kSides][kTile]
    const int group = thread_index() / kTile, column = thread_index() % kTile;
    RESCALED_UNROLL for (int k = 0; k < kSides; ++k) {
      all[(group * kSides + k) * kTile + column] = side[k];
      side[k] = S(0);
    }
    block_barrier();
    if (thread_index() < kSides * kTile)
      for (int i = 0; i < kSideGroups; ++i)
        memory.side[thread_index()] += static_cast<double>(all[i * kSides * kTile + thread_index()]);
    block_barrier();
  }

  RESCALED_MEMBER void run() {
    const Share s = share();
    for (int i = thread_index(); i < kTile * kTile; i += kGramThreads) memory.total[i] = 0;
    if (thread_index() < kSides * kTile) memory.side[thread_index()] = 0;
    int64_t stages = parts_of(p.rows - begin, kRows);
    stages = at_most(stages, plan.stages);
    load(0), load_row(0), store_row(0);
    block_barrier();
    load_row(1);
    RESCALED_ROLLED for (int64_t stage = 0; stage < stages; ++stage) {
      store(stage), store_row(stage + 1);
      block_barrier();
      if (stage + 1 < stages) load(stage + 1), load_row(stage + 2);
      if (has_sides()) add_sides(stage);
      multiply(stage, s);
      if ((stage + 1) % kFlushStages == 0 || stage + 1 == stages) flush(s);
    }
    block_barrier();
    char* const workspace = static_cast<char*>(p.workspace);
    const int64_t part = batch * plan.chunks + chunk, tile = left_panel * (left_panel + 1) / 2 + right_panel;
    double* const to = reinterpret_cast<double*>(workspace + plan.grams) + (part * plan.tiles + tile) * kTile * kTile;
    for (int i = thread_index(); i < kTile * kTile; i += kGramThreads) to[i] = memory.total[i];
    if (!has_sides() || thread_index() >= kSides * kTile) return;
    const int64_t padded = plan.panels * kTile, k = thread_index() / kTile;
    reinterpret_cast<double*>(workspace +
                              plan.sides)[(part * kSides + k) * padded + left_panel * kTile + thread_index() % kTile] =
        memory.side[thread_index()];
  }
};

}  // namespace
}  // namespace rescaled
