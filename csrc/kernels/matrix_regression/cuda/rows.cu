// SPDX-License-Identifier: BSD-3-Clause
// The passes that end in rows of d numbers: an element-wise tile g of the map, and g K.
//
//   gradient  g = u' (c - beta)
//   moments   p = u', q: what the Hessian diag(D) - p q^T - q p^T + square p p^T of a row has beside its diagonal
//   product   the Hessian times t = K y, whose sums <p, t>, <q, t> are <moment, y>: one walk
#include "kernels.cuh"
#include "target.cuh"

namespace rescaled {
namespace {

// <moment, direction> of a row, by the 4 lanes that share it.
template <class T>
RESCALED_DEVICE T row_dot(const InputView& a, const InputView& b, int row, bool inside, int64_t count) {
  T sum = 0;
  if (inside)
    RESCALED_ROLLED for (int64_t d = thread_index() % 4; d < count; d += 4) sum += at<T>(a, row, d) * at<T>(b, row, d);
  return row_sum(sum);
}

template <class T, MatrixPass kPass>
__global__ void __launch_bounds__(128, kPass == MatrixPass::gradient ? 3 : 2)
    rows_walk(const __grid_constant__ MatrixRegressionParameters p, const __grid_constant__ MapPlan plan) {
  RESCALED_SHARED(memory);
  using W = MapWalk<T, kPass>;
  constexpr bool kIsMoments = kPass == MatrixPass::moments, kIsProduct = kPass == MatrixPass::product;
  const W walk(p, plan, memory);
  const RowNumbers<T> numbers[2] = {saved_numbers<T>(p, walk.problem, walk.row(0)),
                                    saved_numbers<T>(p, walk.problem, walk.row(2))};
  T p_t[2] = {}, rest_t[2] = {};  // <p, t>, and <q, t> - square <p, t>
  if constexpr (kIsProduct) RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
      const MapProblem& m = walk.problem;
      const int row = walk.row(2 * h);
      const bool inside = row < walk.row_count;
      p_t[h] = row_dot<T>(m.moment_p, m.row[1], row, inside, p.scores.head_size);
      rest_t[h] = row_dot<T>(m.moment_q, m.row[1], row, inside, p.scores.head_size) - numbers[h].square * p_t[h];
    }
  const bool rescaled = p.form == Form::rescaled;
  const T full = T(p.full), one = T(p.form != Form::plain);
  typename W::Outputs out = {}, other = {};
  const auto number = [&](int, int x) -> const RowNumbers<T>& { return numbers[x / 2]; };
  walk.each_tile([&](int first, int stage) {
    typename W::Tile s, b, along;
    walk.product(s, 0, 0, first, stage);
    fetch_target(walk, b, first, stage, number);
    if constexpr (kIsProduct) walk.product(along, 1, 0, first, stage);
    for_elements(p.scores.kind, walk.visible(first), s, b, number, [&](int j, int x, const Element<T>& e) {
      const T left = e.c - numbers[x / 2].beta,
              q = rescaled ? e.b : (e.u + full * left) * one;  // without the factor u'
      if constexpr (kIsProduct) {
        const T t = along[j][x];
        s[j][x] = e.u * (full * left) * t + e.du * (e.du * t - rest_t[x / 2] - q * p_t[x / 2]);
      } else if constexpr (kIsMoments) {
        s[j][x] = e.du, b[j][x] = e.du * q;
      } else {
        s[j][x] = e.du * left;
      }
    });
    walk.accumulate(out, s, 0, first, stage);
    if constexpr (kIsMoments) walk.accumulate(other, b, 0, first, stage);
  });
  walk.store(out, p.rows);
  if constexpr (kIsMoments) walk.store(other, p.others);
}

}  // namespace

const char* map_rows(MatrixPass pass, const MatrixRegressionParameters& p, void* stream) {
  return launch_map(pass, p, stream, [&](auto element) {
    using T = decltype(element);
    return pass == MatrixPass::moments   ? rows_walk<T, MatrixPass::moments>
           : pass == MatrixPass::product ? rows_walk<T, MatrixPass::product>
                                         : rows_walk<T, MatrixPass::gradient>;
  });
}

}  // namespace rescaled
