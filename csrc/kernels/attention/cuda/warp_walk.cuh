// SPDX-License-Identifier: BSD-3-Clause
// One block's walk (plan.h) on any GPU: the operands it holds and meets, and their products, a warp's 16 rows at a
// time.
#pragma once
#include "place.cuh"

namespace rescaled {
namespace {

template <class T, Pass kPass, Path kPath, Kinds kKinds>
struct WarpWalk : Place<T, kPass, kPath, kKinds> {
  using Base = Place<T, kPass, kPath, kKinds>;
  using Base::column_count, Base::row_count;
  using Base::first_output, Base::first_row, Base::p, Base::plan, Base::problems, Base::shared, Base::warp;
  using Base::kColumns, Base::kOut, Base::kOutColumns, Base::kTiles;
  using typename Base::Outputs;
  using typename Base::S;
  using typename Base::Scores;
  static constexpr bool kResident = kPath == Path::resident;
  const Layout layout;

  RESCALED_MEMBER WarpWalk(const AttentionParameters& p, const Plan& plan, unsigned char* memory)
      : Base(p, plan, memory), layout(layout_of<T>(p, kPass, plan)) {}

  // What the queries of a stage's tile bring (weights.cuh), by keys.
  RESCALED_MEMBER S* numbers(int stage) const {
    return reinterpret_cast<S*>(shared + layout.numbers + stage * layout.stage);
  }

  // Copies, not yet committed.
  RESCALED_MEMBER void load_rows(int parity = 0) const {
    RESCALED_UNROLL for (int i = 0; i < (kResident ? kOperands : 0); ++i) {
      const int64_t width = operand_columns(p, i);
      if (layout.row[i] >= 0)
        load_tile<T>(shared + layout.row[i], tile_ld<T>(width), kWarpRows * plan.warps, problems[parity].row[i],
                     first_row, row_count, 0, width);
    }
  }
  RESCALED_MEMBER void load_columns(int stage, int first, int parity = 0) const {
    RESCALED_UNROLL for (int i = 0; i < (kResident ? kOperands : 0); ++i) {
      const int64_t width = operand_columns(p, i);
      if (layout.column[i] >= 0)
        load_tile<T>(shared + layout.column[i] + stage * layout.stage, tile_ld<T>(width), kColumns,
                     problems[parity].column[i], first, column_count, 0, width);
    }
  }

  // acc = (row operand r) (column operand c)^T, or with kAdds acc += it; an absent operand is zero. In one step where
  // both are resident, else in steps of kChunk through memory that all products share.
  template <bool kSwapped, bool kAdds = false>
  RESCALED_MEMBER void product(Scores& acc, int r, int c, int stage, int first, int parity = 0) const {
    if constexpr (!kAdds)
      RESCALED_UNROLL for (int j = 0; j < kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) acc[j][x] = S(0);
    if (layout.row[r] < 0 || layout.column[c] < 0) return;
    const int width = static_cast<int>(operand_columns(p, r)), step = kResident ? width : kChunk;
    const int ld = tile_ld<T>(step);
    T* const rows = shared + layout.row[r];
    T* const columns = shared + layout.column[c] + stage * layout.stage;
    RESCALED_ROLLED for (int d = 0; d < width; d += step) {
      const int part = least(width - d, step);
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
    const int width = static_cast<int>(operand_columns(p, c));
    if (layout.column[c] < 0 || first_output >= width) return;
    const int part = least(width - first_output, static_cast<int>(kOutColumns));
    T* const columns = shared + layout.column[c] + stage * layout.stage;
    const int ld = tile_ld<T>(kResident ? width : kOutColumns);
    if (!kResident) {
      load_tile<T>(columns, ld, kColumns, problems[parity].column[c], first, column_count, first_output, part);
      arrive();
    }
    multiply_weights<T, kTiles, kOut>(out, weights, columns + (kResident ? first_output : 0), ld, part);
    if (!kResident) block_barrier();
  }

  RESCALED_MEMBER void settle() const {}  // products are done where they are asked for
  RESCALED_MEMBER void begin_products() const {}
  RESCALED_MEMBER void end_products() const {}

  // What was copied is there for all threads.
  RESCALED_MEMBER void arrive() const {
    copy_commit();
    copy_wait<0>();
    block_barrier();
  }

  struct Next {  // what a warpgroup's step says and asks for (group_walk.cuh)
    RESCALED_MEMBER void load() const {}
    RESCALED_MEMBER void announce() const {}
  };

  // Calls step(i, stage, next) for i in [0, count), with what load(i, stage) copied in shared memory; one tile
  // ahead where there are two stages. The rows' copies arrive with the first.
  template <class Load, class Step>
  RESCALED_MEMBER void pipeline(int count, Load load, Step step) const {
    const int ahead = plan.stages - 1;
    RESCALED_ROLLED for (int i = -ahead; i < count; ++i) {
      const int next = i + ahead;
      if (next < count) load(next, next & ahead);
      copy_commit();
      if (i < 0) continue;
      if (ahead > 0)
        copy_wait<1>();
      else
        copy_wait<0>();
      block_barrier();
      step(i, i & ahead, Next{});
      block_barrier();
    }
    copy_wait<0>();
    block_barrier();
  }
};

}  // namespace
}  // namespace rescaled
