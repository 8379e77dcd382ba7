// SPDX-License-Identifier: BSD-3-Clause
// How A^T diag(D) A is cut: tiles of the lower triangle, chunks of rows.
#pragma once
#include "plan.h"

namespace rescaled {

constexpr int kTile = 64;  // rows and columns of the result that a block adds up
constexpr int kGramThreads = 384, kGramWarps = kGramThreads / 32;
constexpr int kSides = 4;         // A^T gradient, A^T p, A^T q, noise
constexpr int kFlushStages = 64;  // stages after which sums in T are added to those in float64
constexpr int kSumColumns = 32;   // numbers that a block of the last step finishes

// Rows in shared memory at a time: a multiple of the 3 or 4 groups of warps that share them.
template <class T>
constexpr int kStageRows = sizeof(T) == 8 ? 24 : 48;

struct GramPlan {
  bool whole = false;
  bool resident = false;  // D and the sides from resident rows; else D is there, and the sides are not asked for
  int64_t panels = 0, tiles = 0;  // kTile columns each; of the lower triangle
  int64_t chunks = 0, stages = 0;
  int64_t diagonal = 0;          // [batches][rows], of the arithmetic
  int64_t grams = 0, sides = 0;  // [batches][chunks][tiles][kTile][kTile], [batches][chunks][kSides][panels kTile]
  int64_t totals = 0;            // [batches][kSides][panels kTile]
  int64_t padded() const { return panels * kTile; }
};

template <class T>
GramPlan gram_plan(const RegressionParameters& p, Space& space) {
  constexpr int rows = kStageRows<T>;
  GramPlan plan;
  plan.whole = reads_whole<T>(p);
  plan.panels = parts_of(p.columns, kTile), plan.tiles = plan.panels * (plan.panels + 1) / 2;
  // A chunk costs a copy of the triangle: it should have several times as many rows as columns.
  const int64_t wanted = at_least(kBlockUnit / (plan.tiles * p.batches), 1), least = 4 * p.columns + 1024,
                chunk_rows = at_least(parts_of(p.rows, wanted), least);
  plan.stages = parts_of(at_most(chunk_rows, p.rows), rows), plan.chunks = parts_of(p.rows, plan.stages * rows);
  plan.grams = space.take(p.batches * plan.chunks * plan.tiles * kTile * kTile, sizeof(double));
  plan.sides = space.take(p.batches * plan.chunks * kSides * plan.padded(), sizeof(double));
  plan.totals = space.take(p.batches * kSides * plan.padded(), sizeof(double));
  return plan;
}

}  // namespace rescaled
