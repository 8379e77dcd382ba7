// SPDX-License-Identifier: BSD-3-Clause
// Along tangents of query, key and target:
//
//   tangents           numbers of the rows: of the loss, of the sum of u, of beta
//   gradient_tangent   dG K + G dK, from those numbers
#include "kernels.cuh"
#include "target.cuh"

namespace rescaled {
namespace {

template <class T, MatrixPass kPass>
__global__ void __launch_bounds__(128, 2)
    tangents_walk(const __grid_constant__ MatrixRegressionParameters p, const __grid_constant__ MapPlan plan) {
  RESCALED_SHARED(memory);
  using W = MapWalk<T, kPass>;
  constexpr bool kIsNumbers = kPass == MatrixPass::tangents;
  const W walk(p, plan, memory);
  const RowNumbers<T> numbers[2] = {saved_numbers<T>(p, walk.problem, walk.row(0)),
                                    saved_numbers<T>(p, walk.problem, walk.row(2))};
  const bool rescaled = p.form == Form::rescaled;
  typename W::Outputs out = {};
  T sums[6] = {};  // of both rows: of the loss, of the sum, inner
  const auto number = [&](int, int x) -> const RowNumbers<T>& { return numbers[x / 2]; };
  walk.each_tile([&](int first, int stage) {
    typename W::Tile s, b, along;
    walk.product(s, 0, 0, first, stage);
    fetch_target(walk, b, first, stage, number);
    walk.product(along, 1, 0, first, stage);
    walk.template product<true>(along, 0, 1, first, stage);
    T tile[2][3] = {};
    const uint32_t visible = walk.visible(first);
    for_elements(p.scores.kind, visible, s, b, number, [&](int j, int x, const Element<T>& e) {
      const RowNumbers<T>& n = numbers[x / 2];
      const T moved_b = target_tangent<T>(walk.problem, walk.row(x), walk.column(first, j, x),
                                          (visible >> (4 * j + x) & 1) != 0),
              target = n.unit * moved_b;
      if constexpr (kIsNumbers) {
        const T moved = e.du * along[j][x];
        tile[x / 2][0] += moved * (e.c - n.beta) - e.c * target;
        tile[x / 2][1] += moved;
        tile[x / 2][2] += rescaled ? e.b * moved + moved_b * (e.c - n.unit * e.b) : moved * (e.c + e.u) - e.u * target;
      } else {
        const Second<T> d = second_of<T>(p.form, e, along[j][x], target, n.sum_tangent);
        const T left = e.c - n.beta;
        s[j][x] = d.du * left + e.du * (d.c - n.beta_tangent), along[j][x] = e.du * left;
      }
    });
    if constexpr (kIsNumbers) {
      RESCALED_UNROLL for (int h = 0; h < 2; ++h) RESCALED_UNROLL for (int i = 0; i < 3; ++i) sums[3 * h + i] +=
          tile[h][i];
    } else {
      walk.accumulate(out, s, 0, first, stage);
      walk.accumulate(out, along, 1, first, stage);
    }
  });
  if constexpr (!kIsNumbers) {
    walk.store(out, p.rows);
    return;
  }
  walk.join(sums);
  using Number = MatrixRegressionTangents;
  const OutputView to = matrix(p.tangents, p.scores, walk.batch);
  RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
    const RowNumbers<T>& n = numbers[h];
    const int row = walk.row(2 * h);
    const T plain = p.form == Form::plain ? T(0) : T(1);
    const T of_loss = row_sum(sums[3 * h]), of_sum = row_sum(sums[3 * h + 1]) * plain,
            of_beta = row_sum(sums[3 * h + 2]) * plain;
    const T square = p.form == Form::normalized ? n.beta + n.square : n.square;
    if (walk.t != 0 || walk.column_warp != 0 || row >= walk.row_count) continue;
    T* const at_row = static_cast<T*>(to.data) + row * to.row;
    at_row[Number::loss * to.column] = n.half * of_loss * n.half;
    at_row[Number::sum * to.column] = of_sum;
    at_row[Number::beta * to.column] = of_beta - of_sum * square;
  }
}

}  // namespace

const char* map_tangents(MatrixPass pass, const MatrixRegressionParameters& p, void* stream) {
  return launch_map(pass, p, stream, [&](auto element) {
    using T = decltype(element);
    return pass == MatrixPass::tangents ? tangents_walk<T, MatrixPass::tangents>
                                        : tangents_walk<T, MatrixPass::gradient_tangent>;
  });
}

}  // namespace rescaled
