// SPDX-License-Identifier: BSD-3-Clause
// How the work of a pass is cut into blocks, and where in the workspace its parts lie: functions of shapes and strides
// alone, on the host.
#pragma once
#include <cstdint>

#include "../parameters.h"

namespace rescaled {

// A lane reads 16 bytes of a row at a time (where single elements must be loaded: at most 4), kLoads of them before it
// uses the first.
template <class T, bool kWhole = true>
constexpr int kWidth = !kWhole && sizeof(T) == 2 ? 4 : 16 / static_cast<int>(sizeof(T));
constexpr int kLoads = 8;
constexpr int kPassWarps = 8;    // most warps of a block, and of a row
constexpr int kMostTiles = 64;   // of a team: no sum in T has more than kLoads times as many terms
constexpr int kMostParts = 128;  // joined at a time
constexpr int kJoinColumns = 64, kJoinThreads = 256;
constexpr int kMostLevels = 6;
// Blocks, in multiples of what fits several GPUs evenly, each reading about half a megabyte.
constexpr int64_t kBlockUnit = 528, kBlockBytes = int64_t{1} << 19;

RESCALED_HOST_DEVICE int64_t parts_of(int64_t n, int64_t size) { return (n + size - 1) / size; }
RESCALED_HOST_DEVICE int64_t at_least(int64_t n, int64_t least) { return n < least ? least : n; }
RESCALED_HOST_DEVICE int64_t at_most(int64_t n, int64_t most) { return n > most ? most : n; }

// Offsets in the workspace, each aligned to 64 bytes.
struct Space {
  int64_t bytes = 0;
  int64_t take(int64_t count, int64_t size) {
    const int64_t at = bytes;
    bytes += (count * size + 63) / 64 * 64;
    return at;
  }
};

// A row of A lies across `lanes` lanes of a warp, or across all lanes of the `team` warps; a block has `teams` of them,
// each with its own rows. A tile is what a team reads at a time.
struct RowPlan {
  bool whole = false;  // 16 bytes are one load: rows are contiguous and aligned
  int lanes = 32, team = 1, teams = 4, warps = 0, tile_rows = 0;
  int64_t tiles = 0;  // of a team
  int64_t chunks = 0, chunk_rows = 0;
  int64_t column_chunks = 1;  // more than one: the logits are known before, and each reads its columns alone
};

template <class T>
bool reads_whole(const RegressionParameters& p) {
  constexpr int width = kWidth<T>;
  bool whole = p.A.column == 1 && p.A.row % width == 0 && p.columns % width == 0 &&
               reinterpret_cast<uintptr_t>(p.A.data) % 16 == 0;
  for (int d = 0; d < p.rank; ++d) whole = whole && p.A.batch[d] % width == 0;
  return whole;
}

// Blocks that share the rows of one problem.
inline int64_t blocks_wanted(const RegressionParameters& p, int64_t element_bytes) {
  const int64_t bytes = p.batches * p.rows * p.columns * element_bytes,
                units = at_least((bytes + kBlockUnit * kBlockBytes / 2) / (kBlockUnit * kBlockBytes), 1);
  return at_least(kBlockUnit * units / p.batches, 1);
}

template <class T>
RowPlan row_plan(const RegressionParameters& p) {
  RowPlan plan;
  plan.whole = reads_whole<T>(p);
  const int width = plan.whole ? kWidth<T, true> : kWidth<T, false>;
  const int64_t of_warp = 32 * width;
  if (p.columns <= of_warp) {
    plan.lanes = 1;
    while (plan.lanes * width < p.columns) plan.lanes *= 2;
  } else if (p.columns <= of_warp * kPassWarps) {
    plan.team = static_cast<int>(parts_of(p.columns, of_warp));
    plan.teams = static_cast<int>(at_least(4 / plan.team, 1));
  } else {
    plan.team = 4, plan.teams = 1;
    plan.column_chunks = parts_of(p.columns, of_warp * plan.team);
  }
  plan.warps = plan.team * plan.teams, plan.tile_rows = kLoads * (32 / plan.lanes);
  const int64_t tiles = parts_of(p.rows, plan.tile_rows),
                each = parts_of(tiles, plan.teams * blocks_wanted(p, sizeof(T)));
  plan.tiles = at_most(each, kMostTiles);
  plan.chunk_rows = plan.tiles * plan.teams * plan.tile_rows;
  plan.chunks = parts_of(p.rows, plan.chunk_rows);
  return plan;
}

// Parts (sums, vectors) to be joined into fewer, level by level, until each problem has one. Level 0 is what the blocks
// of a pass leave, its vectors in the type of the arithmetic; later ones are float64.
struct Parts {
  int64_t sums = 0, vectors = 0;  // [batches][count] Sums, [batches][count][vectors of a part][columns]
  int64_t count = 0;
};
struct PassPlan {
  RowPlan rows;
  int vectors = 0;  // of a part
  int levels = 0;   // the last has one part a problem
  Parts level[kMostLevels];
  bool keeps_logits = false, given = false;  // given: the logits (and t) are there
  int64_t logits = 0, along = 0;             // [batches][rows], of the arithmetic
  int64_t shared_bytes = 0;
};
RESCALED_HOST_DEVICE const Parts& last_level(const PassPlan& plan) { return plan.level[plan.levels - 1]; }

}  // namespace rescaled
