// SPDX-License-Identifier: BSD-3-Clause
// One block's walk (plan.h) on Hopper, for 16-bit elements: a warpgroup's 64 rows at a time, its products asynchronous.
// Operands lie in panels (wgmma.cuh) of kSize columns, zero beyond the problem's, so that all sizes are known.
#pragma once
#include "../../cuda/wgmma.cuh"
#include "place.cuh"

namespace rescaled {
namespace {

template <class T, Pass kPass, Path kPath, Kinds kKinds>
struct GroupWalk : Place<T, kPass, kPath, kKinds> {
  using Base = Place<T, kPass, kPath, kKinds>;
  using Base::column_count, Base::first_row, Base::p, Base::plan, Base::problems, Base::row_count;
  using Base::kColumns, Base::kOut, Base::kTiles;
  using Base::shared, Base::warp;
  using typename Base::Outputs;
  using typename Base::S;
  using typename Base::Scores;
  static constexpr int kSize = group_size(kPath), kRows = kWarpRows * kMaxWarps;
  static constexpr int kStages = group_layout(kPass, kPath, kKinds).stages;
  static_assert(2 * group_layout(kPass, kPath, kKinds).elements + 2 * kProblemBytes <= 227 << 10);
  const int group;  // which warpgroup of the block this is

  RESCALED_MEMBER GroupWalk(const AttentionParameters& p, const Plan& plan, unsigned char* memory)
      : Base(p, plan, memory + (kProblemBytes - shared_address(memory) % kProblemBytes) % kProblemBytes),
        group(uniform(warp / kGroupWarps)) {}

  RESCALED_MEMBER T* row_tile(int i) const { return shared + group_layout(kPass, kPath, kKinds).row[i]; }
  RESCALED_MEMBER T* column_tile(int i, int stage) const {
    constexpr Layout l = group_layout(kPass, kPath, kKinds);
    return shared + l.column[i] + stage * l.stage;
  }
  // What the queries of a stage's tile bring (weights.cuh), by keys.
  RESCALED_MEMBER S* numbers(int stage) const {
    constexpr Layout l = group_layout(kPass, kPath, kKinds);
    return reinterpret_cast<S*>(shared + l.numbers + stage * l.stage);
  }

  // Copies, not yet committed.
  RESCALED_MEMBER void load_rows(int parity = 0) const {
    RESCALED_UNROLL for (int i = 0; i < kOperands; ++i) {
      if (!in_group(kPass, Base::kByKeys, i)) continue;
      load_panels<kRows>(row_tile(i), kWarpRows * plan.warps, problems[parity].row[i], first_row, row_count,
                         operand_columns(p, i));
    }
  }
  RESCALED_MEMBER void load_columns(int stage, int first, int parity = 0) const {
    RESCALED_UNROLL for (int i = 0; i < kOperands; ++i) {
      if (!in_group(kPass, !Base::kByKeys, i)) continue;
      load_panels<kColumns>(column_tile(i, stage), kColumns, problems[parity].column[i], first, column_count,
                            operand_columns(p, i));
    }
  }

  // acc = (row operand r) (column operand c)^T, or with kAdds acc += it: there after settle().
  template <bool kSwapped, bool kAdds = false>
  RESCALED_MEMBER void product(Scores& acc, int r, int c, int stage, int = 0, int = 0) const {
    const Panels<T> a(row_tile(r) + group * kGroupRows * kPanelColumns, kRows * kPanelColumns);
    const Panels<T> b(column_tile(c, stage), kColumns * kPanelColumns);
    group_fence();
    RESCALED_UNROLL for (int k = 0; k < kSize; k += 16) {
      const int panel = k / kPanelColumns * kPanelColumns, column = k % kPanelColumns;
      if (k == 0 && !kAdds)
        group_multiply<true>(acc, a, b);
      else
        group_multiply<false>(acc, a.at(panel * kRows + column), b.at(panel * kColumns + column));
    }
    group_commit();
  }
  // out += weights (column operand c): there after settle().
  RESCALED_MEMBER void accumulate(Outputs& out, const Scores& weights, int c, int stage, int = 0, int = 0) const {
    const Panels<T> b(column_tile(c, stage), kColumns * kPanelColumns);
    uint32_t a[kColumns / 16][4];
    RESCALED_UNROLL for (int k = 0; k < kColumns / 16; ++k) RESCALED_UNROLL for (int i = 0; i < 4; ++i) {
      const float* const pair = weights[2 * k + i / 2] + i % 2 * 2;
      a[k][i] = pack_pair<T>(pair[0], pair[1]);
    }
    group_fence();
    RESCALED_UNROLL for (int k = 0; k < kColumns / 16; ++k)
        group_multiply_weights(out, a[k], b.at(16 * k * kPanelColumns));
    group_commit();
  }
  RESCALED_MEMBER void settle() const { group_wait(); }

  // The second of two warpgroups begins its products of a tile when the first has asked for its own: then one has the
  // tensor cores while the other has its arithmetic.
  RESCALED_MEMBER void begin_products() const {
    if (two_groups() && group > 0) barrier_sync(kTurn);
  }
  RESCALED_MEMBER void end_products() const {
    if (two_groups() && group == 0) barrier_arrive(kTurn);
  }

  // Calls step(i, stage, next) for i in [0, count), with what load(i, stage) copied in shared memory. A step calls,
  // once each: next.load(), which asks for the next tile, after its first products, for they need no thread; and
  // next.announce() when that should have come, before its last products.
  template <class Load, class Step>
  RESCALED_MEMBER void pipeline(int count, Load load, Step step) const {
    if (count > 0) load(0, 0);
    copy_commit();
    arrive();
    int stage = 0;
    RESCALED_ROLLED for (int i = 0; i < count; ++i) {
      const int next = stage + 1 == kStages ? 0 : stage + 1;
      if (i > 0) meet(i);
      step(i, stage, Next<Load>{*this, load, i + 1, next, i + 1 < count});
      stage = next;
    }
    copy_wait<0>();
    block_barrier();
  }

 private:
  RESCALED_MEMBER bool two_groups() const { return plan.warps == kMaxWarps; }

  // What this thread copied is there for the products of all.
  RESCALED_MEMBER void arrive() const {
    copy_wait<0>();
    products_fence();
    block_barrier();
  }
  // With three stages a warpgroup need not wait until the other is done with a tile: it knows that the next one is
  // there, each half copied by one of them, when the other says so, which is then done with the tile before the last.
  // Either may be a tile ahead of the other, so that even and odd tiles have barriers of their own.
  static constexpr int kTurn = 1, kFirst = 2, kSecond = 4;
  RESCALED_MEMBER void announce(int i) const {
    if (kStages == 2 || !two_groups()) return;
    copy_wait<0>();
    products_fence();
    barrier_arrive((group == 0 ? kFirst : kSecond) + (i & 1));
  }
  RESCALED_MEMBER void meet(int i) const {
    if (kStages == 2 || !two_groups()) return arrive();
    barrier_sync((group == 0 ? kSecond : kFirst) + (i & 1));
  }
  template <class Load>
  struct Next {
    const GroupWalk& walk;
    const Load& ask;
    int i, stage;
    bool exists;
    RESCALED_MEMBER void load() const {
      if (exists) ask(i, stage);
      copy_commit();
    }
    RESCALED_MEMBER void announce() const {
      if (exists) walk.announce(i);
    }
  };

  // to = rows [first_row, first_row + tile_rows) of m, 0 beyond `rows` and `columns`, in panels of kTileRows. A thread
  // keeps its unit of 8 columns; its rows are a multiple of 8 apart, so that the permutation of its units is one.
  template <int kTileRows>
  RESCALED_MEMBER void load_panels(T* to, int tile_rows, const InputView& m, int first_row, int rows,
                                   int64_t columns) const {
    constexpr int kUnits = kSize / 8, kWholeStep = 32 * kMaxWarps / kUnits;
    const int c = thread_index() % kUnits * 8, first = thread_index() / kUnits;
    const T* const matrix = static_cast<const T*>(m.data);
    const T* from = matrix + int64_t{first_row + first} * m.row + c * m.column;
    T* out = to + panel_offset(kTileRows, first, c);
    const bool aligned = m.column == 1 && m.row % 8 == 0 && bits_as<uint64_t>(matrix) % 16 == 0 && columns % 8 == 0;
    if (aligned && columns == kSize && plan.warps == kMaxWarps && rows - first_row >= kTileRows) {
      const int64_t stride = kWholeStep * m.row;
      RESCALED_UNROLL for (int i = 0; i < kTileRows / kWholeStep; ++i, from += stride)
          copy_async(out + i * kWholeStep * kPanelColumns, from);
      return;
    }
    const int step = block_threads() / kUnits, left = columns > c ? rows - first_row - first : 0;
    RESCALED_ROLLED for (int r = 0; r < tile_rows - first;
                         r += step, from += step * m.row, out += step * kPanelColumns) {
      if (aligned) {
        copy_async_or_zero(out, r < left ? from : matrix, r < left);
      } else {
        RESCALED_ROLLED for (int i = 0; i < 8; ++i) {
          const bool there = matrix != nullptr && r < rows - first_row - first && c + i < columns;
          out[i] = there ? from[i * m.column] : T{};
        }
      }
    }
  }
};

}  // namespace
}  // namespace rescaled
