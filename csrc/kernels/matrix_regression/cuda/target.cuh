// SPDX-License-Identifier: BSD-3-Clause
// Tiles of the target: dense, or made where they are needed.
#pragma once
#include "elements.cuh"

namespace rescaled {
namespace {

// Of a row: its components, whatever the indices say inside of what is stored.
struct Components {
  int64_t begin, end;
};
RESCALED_DEVICE Components components(const MatrixRegressionParameters& p, const MapProblem& problem, int row) {
  const auto inside = [&](int64_t x) { return x < 0 ? 0 : x < p.stored ? x : p.stored; };
  return {inside(at<int64_t>(problem.rows, row, 0)), inside(at<int64_t>(problem.rows, row + 1, 0))};
}
// The first whose column is at least `column`.
RESCALED_DEVICE int64_t first_at_least(const InputView& columns, Components c, int64_t column) {
  int64_t begin = c.begin, end = c.end;
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (at<int64_t>(columns, middle, 0) < column)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}

// A warp's part of a tile, [16][kColumns + 1].
template <class W, class T>
RESCALED_DEVICE void scatter(const W& walk, int first, T* to) {
  constexpr int ld = W::kColumns + 1;
  const int lane = thread_index() % 32, first_row = walk.first_row + walk.row_warp * kWarpRows;
  RESCALED_ROLLED for (int i = lane; i < kWarpRows * ld; i += 32) to[i] = T(0);
  warp_barrier();
  const int map_row = W::kByColumns ? first + lane : first_row + lane, rows = W::kByColumns ? W::kColumns : kWarpRows;
  const int map_column = W::kByColumns ? first_row : first, columns = W::kByColumns ? kWarpRows : W::kColumns;
  if (lane < rows && map_row < walk.p.scores.queries) {
    const Components c = components(walk.p, walk.problem, map_row);
    RESCALED_ROLLED for (int64_t x = first_at_least(walk.problem.columns, c, map_column); x < c.end; ++x) {
      const int64_t j = at<int64_t>(walk.problem.columns, x, 0) - map_column;
      if (j < 0 || j >= columns) break;
      to[W::kByColumns ? j * ld + lane : lane * ld + j] = at<T>(walk.problem.values, x, 0);
    }
  }
  warp_barrier();
}

// A dense one, by the strides of a tile; what lies beyond the map is whatever is at its end.
template <class W, class T>
RESCALED_DEVICE void fetch_dense(const W& walk, int first, T (&b)[W::kTiles][4]) {
  const InputView& m = walk.problem.dense;
  const int64_t along_row = W::kByColumns ? m.column : m.row, along_column = W::kByColumns ? m.row : m.column;
  const T* of_row[2];
  RESCALED_UNROLL for (int h = 0; h < 2; ++h) of_row[h] =
      static_cast<const T*>(m.data) + least(walk.row(2 * h), walk.row_count - 1) * along_row;
  if (first + W::kColumns <= walk.column_count) {
    RESCALED_UNROLL for (int h = 0; h < 2; ++h) of_row[h] += walk.column(first, 0, 0) * along_column;
    RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) b[j][x] =
        of_row[x / 2][along_column == 1 ? 8 * j + x % 2 : (8 * j + x % 2) * along_column];
  } else {
    RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) b[j][x] =
        of_row[x / 2][least(walk.column(first, j, x), walk.column_count - 1) * along_column];
  }
}

// b = the target's tile from column `first`; numbers(j, x): of the row of the map of an element. What is not visible is
// whatever it is.
template <class W, class T, class Numbers>
RESCALED_DEVICE void fetch_target(const W& walk, T (&b)[W::kTiles][4], int first, int stage, Numbers numbers) {
  const MatrixRegressionParameters& p = walk.p;
  if (p.source == Target::dense) {
    fetch_dense(walk, first, b);
  } else if (p.source == Target::teacher) {
    walk.product(b, 2, 2, first, stage);
    with_kind(p.teacher_kind, [&](auto two_sided) {
      constexpr bool kTwoSided = decltype(two_sided)::value;
      RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
        const RowNumbers<T>& n = numbers(j, x);
        b[j][x] = pair_of<kTwoSided>(p.teacher_kind == Kind::sinh, b[j][x], n.teacher_reference).u * n.teacher_inverse;
      }
    });
  } else if (p.source == Target::sparse) {
    T* const components = walk.shared + walk.layout.components + thread_index() / 32 * kWarpRows * (W::kColumns + 1);
    scatter(walk, first, components);
    RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) b[j][x] =
        components[(walk.g + x / 2 * 8) * (W::kColumns + 1) + walk.column(0, j, x)];
  } else {
    RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) b[j][x] = T(0);
  }
}

// Calls visit(j, x, element) for the elements of scores and target, hidden ones as zeros.
template <class T, int kTiles, class Numbers, class Visit>
RESCALED_DEVICE void for_elements(Kind kind, uint32_t visible, T (&score)[kTiles][4], T (&b)[kTiles][4],
                                  Numbers numbers, Visit visit) {
  hide(visible, score, b);
  with_kind(kind, [&](auto two_sided) {
    constexpr bool kTwoSided = decltype(two_sided)::value;
    RESCALED_UNROLL for (int j = 0; j < kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x)
        visit(j, x,
              element_of<kTwoSided, T>(kind == Kind::sinh, numbers(j, x), score[j][x], b[j][x],
                                       (visible >> (4 * j + x) & 1) != 0));
  });
}

}  // namespace
}  // namespace rescaled
