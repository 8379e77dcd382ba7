// SPDX-License-Identifier: BSD-3-Clause
// One block's place in a problem: its rows, the columns it meets, and how its outputs leave.
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

template <class T, Pass kPass, Path kPath, Kinds kKinds>
struct Place {
  static constexpr bool kByKeys = by_keys(kPass), kIsGroup = group_size(kPath) > 0;
  static constexpr int kColumns = tile_columns<T>(kPass, kPath, kKinds), kTiles = kColumns / 8;
  static constexpr int kOutColumns = output_columns<T>(kPath), kOut = kOutColumns / 8;
  using S = Scalar<T>;
  using Scores = S[kTiles][4];
  using Outputs = S[kOut][4];

  const AttentionParameters& p;
  const Plan& plan;
  Problem<S>* const problems;  // two: of even and of odd heads of a group
  T* const shared;
  const int warp, g, t;
  const int row_count, column_count;
  int first_row = 0, first_output = 0;  // of the block: its rows, the columns of its output

  RESCALED_MEMBER Place(const AttentionParameters& parameters, const Plan& plan, unsigned char* memory)
      : p(parameters),
        plan(plan),
        problems(reinterpret_cast<Problem<S>*>(memory)),
        shared(reinterpret_cast<T*>(memory + kProblemBytes)),
        warp(thread_index() / 32),
        g(thread_index() % 32 / 4),
        t(thread_index() % 4),
        row_count(static_cast<int>(kByKeys ? parameters.keys : parameters.queries)),
        column_count(static_cast<int>(kByKeys ? parameters.queries : parameters.keys)) {}

  // Row `half` (0, 1) of this thread, and column `e` (0, 1) of its tile `j`, in the whole problem.
  RESCALED_MEMBER int row(int half) const { return first_row + warp * kWarpRows + g + 8 * half; }
  RESCALED_MEMBER int column(int first, int j, int e) const { return first + 8 * j + 2 * t + e; }

  // Sets the place of this block among `problems` (query problems, or key-value heads), and returns its problem. The
  // longest blocks of a causal problem come first.
  RESCALED_MEMBER int64_t take_place() {
    const int row_blocks = static_cast<int>(plan.row_blocks), chunks = static_cast<int>(plan.output_chunks);
    const int index = block_index() / static_cast<int>(plan.key_splits), block = index / chunks % row_blocks;
    first_output = index % chunks * kOutColumns;
    first_row = (p.causal && !kByKeys ? row_blocks - 1 - block : block) * kWarpRows * plan.warps;
    return index / (chunks * row_blocks);
  }
  // The tiles of columns that some row of the block attends to: [0, end) of the keys, or [begin, end) of the queries.
  RESCALED_MEMBER int first_tile() const { return p.causal && kByKeys ? first_row / kColumns : 0; }
  RESCALED_MEMBER int last_tile() const {
    const int last_row = least(first_row + kWarpRows * plan.warps, row_count);
    const int count = p.causal && !kByKeys ? least(column_count, last_row) : column_count;
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

  // scale * out - subtract[row] * minus, this warp's rows, to columns [first_output, ...) of a matrix with `width`
  // columns. After the pipeline: the memory of the tiles is free.
  RESCALED_MEMBER void store(const Outputs& out, OutputView m, int64_t width, S scale, InputView minus,
                             const S (&subtract)[2]) const {
    if (m.data == nullptr) return;
    S* const mine = reinterpret_cast<S*>(shared) + warp * kWarpRows * kStoreLd;
    const int lane = 4 * g + t;
    constexpr int kGroup = kStoreColumns / 8;
    RESCALED_UNROLL for (int j = 0; j < kOut; j += kGroup) {
      const int column = first_output + 8 * j + lane;
      if (first_output + 8 * j >= width) continue;
      RESCALED_UNROLL for (int i = 0; i < kGroup; ++i) RESCALED_UNROLL for (int x = 0; x < 4; ++x)
          mine[(g + x / 2 * 8) * kStoreLd + 8 * i + 2 * t + x % 2] = scale * out[j + i][x];
      if (t == 0)
        RESCALED_UNROLL for (int h = 0; h < 2; ++h) mine[(g + 8 * h) * kStoreLd + kStoreColumns] = subtract[h];
      warp_barrier();
      RESCALED_ROLLED for (int r = 0; r < kWarpRows; ++r) {
        const int row = first_row + warp * kWarpRows + r;
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
