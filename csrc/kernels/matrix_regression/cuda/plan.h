// SPDX-License-Identifier: BSD-3-Clause
// Which block of threads does what, from the shapes and the device's shared memory alone. Host and device.
//
// Every pass is the same walk over the map: a block keeps some rows (rows of the map, or columns of it), meets the
// others tile by tile, forms scores and target, turns them into elements, and sums these or adds their products with
// the others' factors to its outputs. A warp has 16 rows; those of a block are `row_warps` groups of rows, each by
// `column_warps` warps that take turns at the columns and add up what they found at the end.
#pragma once
#include "../../attention/cuda/plan.h"
#include "../parameters.h"

namespace rescaled {

RESCALED_HOST_DEVICE constexpr bool by_columns(MatrixPass pass) { return pass == MatrixPass::columns; }
RESCALED_HOST_DEVICE constexpr bool has_outputs(MatrixPass pass) {
  return pass != MatrixPass::statistics && pass != MatrixPass::tangents && pass != MatrixPass::elements;
}

// What the two sides bring: factors of the scores; tangents of them, or a direction; a teacher's factors.
constexpr int kFactors = 3;
RESCALED_HOST_DEVICE int64_t depth_of(const MatrixRegressionParameters& p, int i) {
  return i == 2 ? p.teacher_size : p.scores.head_size;
}
RESCALED_HOST_DEVICE const Input* factors_of(const MatrixRegressionParameters& p, bool columns, int i) {
  const AttentionParameters& s = p.scores;
  const Input* m = nullptr;
  if (i == 0) m = columns ? &s.key : &s.query;
  if (i == 1) m = columns ? &s.tangent_key : p.direction.data != nullptr ? &p.direction : &s.tangent_query;
  if (i == 2 && p.source == Target::teacher) m = columns ? &p.target_columns : &p.target_rows;
  return m != nullptr && m->data != nullptr ? m : nullptr;
}

// Columns of a tile, and of the output that one block makes; a wider one takes several blocks, each with the elements
// anew.
template <class T>
constexpr int kTileColumns = sizeof(T) == 8 ? 16 : 32;
template <class T>
constexpr int kOutputColumns = sizeof(T) == 8 ? 32 : 64;

// What a row of the map brings to its elements (elements.cuh), in arrays where the rows are a tile's columns.
constexpr int kRowNumbers = 11;

struct MapPlan {
  int row_warps = 4, column_warps = 1, stages = 1;
  bool resident = true;                // factors of whole depth in shared memory, or in steps of kChunk
  int shift[kFactors] = {-1, -1, -1};  // log2 of a row's 16-byte vectors, where whole rows are copied at a time
  int64_t row_blocks = 1, output_chunks = 1, blocks = 0, shared_bytes = 0;
};
RESCALED_HOST_DEVICE int warps_of(const MapPlan& plan) { return plan.row_warps * plan.column_warps; }
RESCALED_HOST_DEVICE int block_rows(const MapPlan& plan) { return kWarpRows * plan.row_warps; }
template <class T>
RESCALED_HOST_DEVICE int block_columns(const MapPlan& plan) {  // of a stage
  return kTileColumns<T> * plan.column_warps;
}

// Where things lie in shared memory behind the block's problem, in elements; -1: absent. Columns and numbers: of stage
// 0, with one stage's elements.
struct MapLayout {
  int row[kFactors], column[kFactors], numbers, components, stage, elements;
};
constexpr int kMapProblemBytes = 1024;
// Numbers of a thread that warps add up at the end: those of the statistics, or of an output.
template <class T>
constexpr int kJoined = kOutputColumns<T> / 2 > 16 ? kOutputColumns<T> / 2 : 16;

template <class T>
RESCALED_HOST_DEVICE MapLayout map_layout(const MatrixRegressionParameters& p, MatrixPass pass, const MapPlan& plan) {
  MapLayout l{};
  const int rows = block_rows(plan), columns = block_columns<T>(plan);
  int begin = 0;
  for (int side = 0; side < 2; ++side) {
    int* const to = side == 0 ? l.row : l.column;
    const int count = side == 0 ? rows : columns;
    begin = l.elements;
    for (int i = 0; i < kFactors; ++i) {
      const bool there = factors_of(p, by_columns(pass) == (side == 0), i) != nullptr;
      to[i] = there ? l.elements : -1;
      if (there && plan.resident) l.elements += count * tile_ld<T>(depth_of(p, i));
    }
    if (!plan.resident) l.elements += count * tile_ld<T>(kChunk);
  }
  l.numbers = l.elements;
  if (by_columns(pass)) l.elements += kRowNumbers * columns;
  l.stage = l.elements - begin + (4 - (l.elements - begin) % 4) % 4;  // whole vectors of 16 bytes
  l.elements = begin + plan.stages * l.stage;
  l.components = l.elements;
  if (p.source == Target::sparse) l.elements += warps_of(plan) * kWarpRows * (kTileColumns<T> + 1);
  const int joining = warps_of(plan) * 32 * kJoined<T>;
  if (plan.column_warps > 1 && l.elements < joining) l.elements = joining;
  return l;
}

constexpr int64_t kManyBlocks = 264;  // two for each multiprocessor of a large GPU
template <class T>
MapPlan map_plan(const MatrixRegressionParameters& p, MatrixPass pass, int64_t shared_bytes, int64_t many_blocks) {
  MapPlan plan;
  const int64_t rows = by_columns(pass) ? p.scores.keys : p.scores.queries;
  plan.output_chunks = has_outputs(pass) ? (p.scores.head_size + kOutputColumns<T> - 1) / kOutputColumns<T> : 1;
  // As many rows share the columns' tiles as leave blocks enough for several turns of a large GPU: by shape alone.
  const auto blocks = [&](int row_warps) {
    return p.scores.kv_batches * ((rows + kWarpRows * row_warps - 1) / (kWarpRows * row_warps)) * plan.output_chunks;
  };
  const int most = blocks(4) >= 3 * many_blocks ? 4 : blocks(2) >= many_blocks ? 2 : 1;
  bool fits = false;
  // Beyond any GPU's memory nothing is tried: the layout counts in 32 bits.
  const bool small = p.scores.head_size <= 1 << 16 && p.teacher_size <= 1 << 16;
  const auto fit = [&](int row_warps, int column_warps, int stages, bool resident, int64_t bytes) {
    plan.row_warps = row_warps, plan.column_warps = column_warps, plan.stages = stages, plan.resident = resident;
    plan.shared_bytes = kMapProblemBytes + map_layout<T>(p, pass, plan).elements * static_cast<int64_t>(sizeof(T));
    fits = plan.shared_bytes <= bytes;
  };
  for (int columns = 4 / most; small && columns >= 1 && !fits; columns /= 2)
    fit(most, columns, 2, true, shared_bytes / 2);  // two blocks side by side
  for (int row_warps = most; small && row_warps >= 1 && !fits; row_warps /= 2) fit(row_warps, 1, 1, true, shared_bytes);
  if (!fits) fit(most, 4 / most, 1, false, shared_bytes);  // every depth
  for (int i = 0; i < kFactors; ++i) {
    const int64_t vectors = depth_of(p, i) * static_cast<int64_t>(sizeof(T)) / 16;
    for (int shift = 0; shift <= 5 && depth_of(p, i) % 16 == 0; ++shift)
      if (vectors == 1 << shift) plan.shift[i] = shift;
  }
  plan.row_blocks = (rows + block_rows(plan) - 1) / block_rows(plan);
  plan.blocks = p.scores.kv_batches * plan.row_blocks * plan.output_chunks;
  return plan;
}

}  // namespace rescaled
