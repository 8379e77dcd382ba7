// SPDX-License-Identifier: BSD-3-Clause
// One block's walk (plan.h): where it is, the operands it holds and meets, and their products.
#pragma once
#include "masks.cuh"

namespace rescaled {
namespace {

// What a block must know of a problem, in shared memory: registers are for the products.
template <class S>
struct Problem {
  InputView row[kOperands], column[kOperands];
  Elementwise<S> masks;
};
static_assert(2 * sizeof(Problem<double>) <= kProblemBytes);

template <class T, Pass kPass, bool kIsResident>
struct Walk {
  static constexpr bool kByKeys = by_keys(kPass), kResident = kIsResident;
  static constexpr int kColumns = tile_columns<T>(kPass, kResident), kTiles = kColumns / 8;
  static constexpr int kOutColumns = output_columns<T>(kPass, kResident), kOut = kOutColumns / 8;
  using S = Scalar<T>;
  using Scores = S[kTiles][4];
  using Outputs = S[kOut][4];

  const AttentionParameters& p;
  const Plan& plan;
  Problem<S>* const problems;  // two: of even and of odd heads of a group
  T* const shared;
  const Layout layout;
  const int warp, g, t;
  const int64_t row_count, column_count;
  int64_t first_row = 0, first_output = 0;  // of the block: its rows, the columns of its output

  RESCALED_MEMBER Walk(const AttentionParameters& parameters, const Plan& plan, unsigned char* memory)
      : p(parameters),
        plan(plan),
        problems(reinterpret_cast<Problem<S>*>(memory)),
        shared(reinterpret_cast<T*>(memory + kProblemBytes)),
        layout(layout_of<T>(parameters, kPass, plan)),
        warp(thread_index() / 32),
        g(thread_index() % 32 / 4),
        t(thread_index() % 4),
        row_count(kByKeys ? parameters.keys : parameters.queries),
        column_count(kByKeys ? parameters.queries : parameters.keys) {}

  // Row `half` (0, 1) of this thread, and column `e` (0, 1) of its tile `j`, in the whole problem.
  RESCALED_MEMBER int64_t row(int half) const { return first_row + warp * kWarpRows + g + 8 * half; }
  RESCALED_MEMBER int64_t column(int64_t first, int j, int e) const { return first + 8 * j + 2 * t + e; }

  // Sets the place of this block among `problems` (query problems, or key-value heads), and returns its problem. The
  // longest blocks of a causal problem come first.
  RESCALED_MEMBER int64_t take_place() {
    const int64_t index = block_index() / plan.key_splits, block = index / plan.output_chunks % plan.row_blocks;
    first_output = index % plan.output_chunks * kOutColumns;
    first_row = (p.causal && !kByKeys ? plan.row_blocks - 1 - block : block) * kWarpRows * plan.warps;
    return index / (plan.output_chunks * plan.row_blocks);
  }
  // The tiles of columns that some row of the block attends to: [0, end) of the keys, or [begin, end) of the queries.
  RESCALED_MEMBER int64_t first_tile() const { return p.causal && kByKeys ? first_row / kColumns : 0; }
  RESCALED_MEMBER int64_t last_tile() const {
    const int64_t last_row = least(first_row + kWarpRows * plan.warps, row_count);
    const int64_t count = p.causal && !kByKeys ? least(column_count, last_row) : column_count;
    return (count + kColumns - 1) / kColumns;
  }

  // Problem `b`, for all threads; none of them reads the one before any more.
  RESCALED_MEMBER void set_problem(int64_t b, int parity = 0) const {
    Problem<S>& to = problems[parity];
    const int thread = thread_index();
    if (thread < 2 * kOperands) {
      const bool row = thread < kOperands;
      const Input* m = operand(p, kPass, row == kByKeys, thread % kOperands);
      (row ? to.row : to.column)[thread % kOperands] =
          m != nullptr ? matrix(*m, p, b) : InputView{nullptr, DType::float32, 0, 0};
    }
    if (thread == 2 * kOperands) to.masks.set(p, b);
    block_barrier();
  }

  // Copies, not yet committed.
  RESCALED_MEMBER void load_rows(int parity = 0) const {
    if (!kResident) return;
    RESCALED_UNROLL for (int i = 0; i < kOperands; ++i) {
      const int64_t width = operand_columns(p, i);
      if (layout.row[i] >= 0)
        load_tile<T>(shared + layout.row[i], tile_ld<T>(width), kWarpRows * plan.warps, problems[parity].row[i],
                     first_row, row_count, 0, width);
    }
  }
  RESCALED_MEMBER void load_columns(int stage, int64_t first, int parity = 0) const {
    if (!kResident) return;
    RESCALED_UNROLL for (int i = 0; i < kOperands; ++i) {
      const int64_t width = operand_columns(p, i);
      if (layout.column[i] >= 0)
        load_tile<T>(shared + layout.column[i] + stage * layout.stage, tile_ld<T>(width), kColumns,
                     problems[parity].column[i], first, column_count, 0, width);
    }
  }

  // acc += (row operand r) (column operand c)^T; nothing where one is absent. In one step where both are resident, else
  // in steps of kChunk through memory that all products share.
  template <bool kSwapped>
  RESCALED_MEMBER void product(Scores& acc, int r, int c, int stage, int64_t first, int parity) const {
    if (layout.row[r] < 0 || layout.column[c] < 0) return;
    const int64_t width = operand_columns(p, r), step = kResident ? width : kChunk;
    const int ld = tile_ld<T>(step);
    T* const rows = shared + layout.row[r];
    T* const columns = shared + layout.column[c] + stage * layout.stage;
    RESCALED_ROLLED for (int64_t d = 0; d < width; d += step) {
      const int64_t part = least(width - d, step);
      if (!kResident) {
        load_tile<T>(rows, ld, kWarpRows * plan.warps, problems[parity].row[r], first_row, row_count, d, part);
        load_tile<T>(columns, ld, kColumns, problems[parity].column[c], first, column_count, d, part);
        arrive();
      }
      multiply_rows<T, kTiles, kSwapped>(acc, rows + warp * kWarpRows * ld, ld, columns, ld,
                                         static_cast<int>(round_up(part, 16)));
      if (!kResident) block_barrier();
    }
  }

  // out += weights (columns [first_output, first_output + kOutColumns) of column operand c)
  RESCALED_MEMBER void accumulate(Outputs& out, const Scores& weights, int c, int stage, int64_t first,
                                  int parity = 0) const {
    const int64_t width = operand_columns(p, c);
    if (layout.column[c] < 0 || first_output >= width) return;
    const int64_t part = least(width - first_output, kOutColumns);
    T* const columns = shared + layout.column[c] + stage * layout.stage;
    const int ld = tile_ld<T>(kResident ? width : kOutColumns);
    if (!kResident) {
      load_tile<T>(columns, ld, kColumns, problems[parity].column[c], first, column_count, first_output, part);
      arrive();
    }
    multiply_weights<T, kTiles, kOut>(out, weights, columns + (kResident ? first_output : 0), ld,
                                      static_cast<int>(part));
    if (!kResident) block_barrier();
  }

  // What was copied is there for all threads.
  RESCALED_MEMBER void arrive() const {
    copy_commit();
    copy_wait<0>();
    block_barrier();
  }

  // Calls step(i, stage) for i in [0, count), with what load(i, stage) copied in shared memory; one tile ahead where
  // there are two stages. The rows' copies arrive with the first.
  template <class Load, class Step>
  RESCALED_MEMBER void pipeline(int64_t count, Load load, Step step) const {
    const int ahead = plan.stages - 1;
    RESCALED_ROLLED for (int64_t i = -ahead; i < count; ++i) {
      const int64_t next = i + ahead;
      if (next < count) load(next, static_cast<int>(next & ahead));
      copy_commit();
      if (i < 0) continue;
      if (ahead > 0)
        copy_wait<1>();
      else
        copy_wait<0>();
      block_barrier();
      step(i, static_cast<int>(i & ahead));
      block_barrier();
    }
    copy_wait<0>();
    block_barrier();
  }

  // scale * out - subtract[row] * minus, this warp's rows, to columns [first_output, ...) of a matrix with `width`
  // columns. After the pipeline: the memory of the tiles is free.
  RESCALED_MEMBER void store(const Outputs& out, OutputView m, int64_t width, S scale, InputView minus,
                             const S (&subtract)[2]) const {
    if (m.data == nullptr) return;
    S* const mine = reinterpret_cast<S*>(shared) + warp * kWarpRows * kStoreLd;
    const int lane = 4 * g + t;
    constexpr int kGroup = kStoreColumns / 8;
    RESCALED_UNROLL for (int j = 0; j < kOut; j += kGroup) {
      const int64_t column = first_output + 8 * j + lane;
      if (first_output + 8 * j >= width) continue;
      RESCALED_UNROLL for (int i = 0; i < kGroup; ++i) RESCALED_UNROLL for (int x = 0; x < 4; ++x)
          mine[(g + x / 2 * 8) * kStoreLd + 8 * i + 2 * t + x % 2] = scale * out[j + i][x];
      if (t == 0)
        RESCALED_UNROLL for (int h = 0; h < 2; ++h) mine[(g + 8 * h) * kStoreLd + kStoreColumns] = subtract[h];
      warp_barrier();
      RESCALED_ROLLED for (int r = 0; r < kWarpRows; ++r) {
        const int64_t row = first_row + warp * kWarpRows + r;
        if (row >= row_count || column >= width) continue;
        S x = mine[r * kStoreLd + lane];
        if (minus.data != nullptr)
          x -= mine[r * kStoreLd + kStoreColumns] * number_at<S>(minus, row * minus.row + column * minus.column);
        store_at<S>(m, row * m.row + column * m.column, x);
      }
      warp_barrier();
    }
  }
  RESCALED_MEMBER void store(const Outputs& out, OutputView m, int64_t width, S scale) const {
    store(out, m, width, scale, InputView{nullptr, DType::float32, 0, 0}, {S(0), S(0)});
  }
};

}  // namespace
}  // namespace rescaled
