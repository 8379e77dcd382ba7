// SPDX-License-Identifier: BSD-3-Clause
// With a weight of each row:
//
//   columns    G^T Q, or along tangents dG^T Q + G^T dQ: a block's rows are columns of the map
//   elements   the gradient in the target, or its tangent
#include "kernels.cuh"
#include "target.cuh"

namespace rescaled {
namespace {

template <class T, bool kSecond>
__global__ void __launch_bounds__(128, kSecond ? 2 : 3)
    columns_walk(const __grid_constant__ MatrixRegressionParameters p, const __grid_constant__ MapPlan plan) {
  RESCALED_SHARED(memory);
  using W = MapWalk<T, MatrixPass::columns>;
  const W walk(p, plan, memory);
  const auto numbers = [&](int stage) {
    return reinterpret_cast<RowNumbers<T>*>(walk.shared + walk.layout.numbers + stage * walk.layout.stage);
  };
  typename W::Outputs out = {};
  const auto load = [&](int first, int stage) {
    const int i = thread_index();
    if (i < block_columns<T>(plan)) numbers(stage)[i] = saved_numbers<T>(p, walk.problem, first + i);
  };
  walk.each_tile(load, [&](int first, int stage) {
    const auto number = [&](int j, int x) -> const RowNumbers<T>& {
      return numbers(stage)[walk.column(walk.column_warp * W::kColumns, j, x)];
    };
    typename W::Tile s, b, along;
    walk.product(s, 0, 0, first, stage);
    fetch_target(walk, b, first, stage, number);
    if constexpr (kSecond) {
      walk.product(along, 1, 0, first, stage);
      walk.template product<true>(along, 0, 1, first, stage);
    }
    const uint32_t visible = walk.visible(first);
    for_elements(p.scores.kind, visible, s, b, number, [&](int j, int x, const Element<T>& e) {
      const RowNumbers<T>& n = number(j, x);
      const T left = e.c - n.beta;
      if constexpr (kSecond) {
        const T target = n.unit * target_tangent<T>(walk.problem, walk.map_row(first, j, x),
                                                    walk.map_column(first, j, x), (visible >> (4 * j + x) & 1) != 0);
        const Second<T> d = second_of<T>(p.form, e, along[j][x], target, n.sum_tangent);
        s[j][x] = (d.du * left + e.du * (d.c - n.beta_tangent)) * n.half * n.weight;
        along[j][x] = e.du * left * n.half * n.weight;
      } else {
        s[j][x] = e.du * left * n.half * n.weight;
      }
    });
    walk.accumulate(out, s, 0, first, stage);
    if constexpr (kSecond) walk.accumulate(out, along, 1, first, stage);
  });
  walk.store(out, p.columns);
}

template <class T, bool kSecond>
__global__ void __launch_bounds__(128, kSecond ? 2 : 3)
    elements_walk(const __grid_constant__ MatrixRegressionParameters p, const __grid_constant__ MapPlan plan) {
  RESCALED_SHARED(memory);
  using W = MapWalk<T, MatrixPass::elements>;
  const W walk(p, plan, memory);
  const RowNumbers<T> numbers[2] = {saved_numbers<T>(p, walk.problem, walk.row(0)),
                                    saved_numbers<T>(p, walk.problem, walk.row(2))};
  const OutputView out = matrix(p.elements, p.scores, walk.batch);
  const auto number = [&](int, int x) -> const RowNumbers<T>& { return numbers[x / 2]; };
  walk.each_tile([&](int first, int stage) {
    typename W::Tile s, b, along;
    walk.product(s, 0, 0, first, stage);
    fetch_target(walk, b, first, stage, number);
    if constexpr (kSecond) {
      walk.product(along, 1, 0, first, stage);
      walk.template product<true>(along, 0, 1, first, stage);
    }
    const uint32_t visible = walk.visible(first);
    for_elements(p.scores.kind, visible, s, b, number, [&](int j, int x, const Element<T>& e) {
      const RowNumbers<T>& n = numbers[x / 2];
      const int row = walk.row(x), column = walk.column(first, j, x);
      const bool takes_part = (visible >> (4 * j + x) & 1) != 0;
      T g = -n.unit * e.c;
      if constexpr (kSecond) {
        const T target = n.unit * target_tangent<T>(walk.problem, row, column, takes_part);
        g = -n.unit * second_of<T>(p.form, e, along[j][x], target, n.sum_tangent).c;
        if (p.form == Form::rescaled) g -= n.sum_tangent * e.c;
      }
      if (row < walk.row_count && column < walk.column_count)
        static_cast<T*>(out.data)[row * out.row + column * out.column] = takes_part ? g * n.half * n.weight : T(0);
    });
  });
}

}  // namespace

const char* map_columns(const MatrixRegressionParameters& p, void* stream) {
  return launch_map(MatrixPass::columns, p, stream, [&](auto element) {
    using T = decltype(element);
    return p.saved_tangents ? columns_walk<T, true> : columns_walk<T, false>;
  });
}
const char* map_elements(const MatrixRegressionParameters& p, void* stream) {
  return launch_map(MatrixPass::elements, p, stream, [&](auto element) {
    using T = decltype(element);
    return p.saved_tangents ? elements_walk<T, true> : elements_walk<T, false>;
  });
}

}  // namespace rescaled
