// SPDX-License-Identifier: BSD-3-Clause
// The numbers of the rows. One walk over the map, with the reference and the sum of u online; the residual c = u - nu b
// is summed around a prediction of nu, so that it is exact however small it is. In the plain form, whose nu is a number
// but whose reference must know b, and for sinh, whose sum may be small, a second walk for the residual.
#include "kernels.cuh"
#include "target.cuh"

namespace rescaled {
namespace {

// Of a row: u against the reference, in whole octaves. Sums are of this thread's elements but for bb_row, the row's;
// for e = u - predicted b.
template <class T>
struct Online {
  T reference = -infinity<T>(), sum = T(0), largest = T(0);
  T predicted = T(0), bb_row = T(0), bb = T(0), eb = T(0), ee = T(0);
  // To a reference of at least this.
  RESCALED_MEMBER void rise(T to) {
    if (!(to > reference)) return;
    const T factor = cuda::exp2_vector<T>(reference - to);
    reference = to, sum *= factor, predicted *= factor, eb *= factor, ee *= factor * factor;
  }
};

// A tile's row: u and b of the elements that take part, 0 elsewhere. The prediction is the fit of u by b in the tile
// that had more of b^2 than all before it: near a solution u is close to nu b in any tile, and in no other is
// predicted b larger than the u of that one. A new prediction carries the sums over.
template <class T, int kTiles>
RESCALED_DEVICE void add_centered(const T (&u)[kTiles][4], const T (&b)[kTiles][4], int h, Online<T>& r) {
  T bb = 0, ub = 0;
  RESCALED_UNROLL for (int j = 0; j < kTiles; ++j) RESCALED_UNROLL for (int x = 2 * h; x < 2 * h + 2; ++x) bb +=
      b[j][x] * b[j][x],
      ub += u[j][x] * b[j][x];
  const T tile_bb = row_sum(bb), tile_ub = row_sum(ub);
  const T fit = tile_bb > r.bb_row ? tile_ub / tile_bb : r.predicted, step = fit - r.predicted;
  r.ee -= step * (r.eb + r.eb - step * r.bb), r.eb -= step * r.bb;
  r.predicted = fit, r.bb_row += tile_bb, r.bb += bb;
  T eb = 0, ee = 0;
  RESCALED_UNROLL for (int j = 0; j < kTiles; ++j) RESCALED_UNROLL for (int x = 2 * h; x < 2 * h + 2; ++x) {
    const T e = u[j][x] - fit * b[j][x];
    eb += e * b[j][x], ee += e * e;
  }
  r.eb += eb, r.ee += ee;
}

// The sums of whole rows; where several warps share the columns, of what all of them have found, in their order:
// against the largest reference, around the prediction of the one that had most of b^2.
template <class W, class T>
RESCALED_DEVICE void join_rows(const W& walk, Online<T> (&rows)[2]) {
  constexpr int kCount = 7;
  T mine[2 * kCount];
  RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
    Online<T>& r = rows[h];
    r.sum = row_sum(r.sum), r.bb = row_sum(r.bb), r.eb = row_sum(r.eb), r.ee = row_sum(r.ee);
    r.largest = row_max(r.largest);
    const T numbers[kCount] = {r.reference, r.sum, r.largest, r.predicted, r.bb, r.eb, r.ee};
    RESCALED_UNROLL for (int i = 0; i < kCount; ++i) mine[kCount * h + i] = numbers[i];
  }
  if (walk.plan.column_warps == 1) return;
  walk.share(mine);
  RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
    const auto number = [&](int w, int i) { return walk.shared_number(w, kCount * h + i); };
    Online<T> all;
    int best = 0;
    RESCALED_ROLLED for (int w = 0; w < walk.plan.column_warps; ++w) {
      all.reference = greater(all.reference, number(w, 0)), all.largest = greater(all.largest, number(w, 2));
      if (number(w, 4) > number(best, 4)) best = w;
    }
    const auto factor_of = [&](int w) {
      return all.reference > -infinity<T>() ? cuda::exp2_vector<T>(number(w, 0) - all.reference) : T(1);
    };
    all.predicted = number(best, 3) * factor_of(best);
    RESCALED_ROLLED for (int w = 0; w < walk.plan.column_warps; ++w) {
      const T factor = factor_of(w), step = all.predicted - number(w, 3) * factor, bb = number(w, 4),
              eb = number(w, 5) * factor;
      all.sum += number(w, 1) * factor, all.bb += bb, all.eb += eb - step * bb;
      all.ee += number(w, 6) * factor * factor - step * (eb + eb - step * bb);
    }
    rows[h] = all;
  }
  block_barrier();
}

// Whether a sparse row's indices are in order and within the map, by the 4 lanes that share it.
RESCALED_DEVICE bool is_sparse_row(const MatrixRegressionParameters& p, const MapProblem& problem, int row) {
  if (p.source != Target::sparse || row >= p.scores.queries) return true;
  const int64_t begin = at<int64_t>(problem.rows, row, 0), end = at<int64_t>(problem.rows, row + 1, 0);
  bool good = begin >= 0 && begin <= end && end <= p.stored;
  if (row == 0) good = good && begin == 0;
  if (row == p.scores.queries - 1) good = good && end == p.stored;
  for (int64_t x = begin + thread_index() % 4; good && x < end; x += 4) {
    const int64_t column = at<int64_t>(problem.columns, x, 0);
    good = column >= 0 && column < p.scores.keys && (x == begin || column > at<int64_t>(problem.columns, x - 1, 0));
  }
  return good;
}

template <class T>
__global__ void __launch_bounds__(128, 3)
    statistics_walk(const __grid_constant__ MatrixRegressionParameters p, const __grid_constant__ MapPlan plan) {
  RESCALED_SHARED(memory);
  using W = MapWalk<T, MatrixPass::statistics>;
  using Number = MatrixRegressionStatistics;
  const W walk(p, plan, memory);
  RowNumbers<T> numbers[2] = {saved_numbers<T>(p, walk.problem, walk.row(0)),
                              saved_numbers<T>(p, walk.problem, walk.row(2))};
  const auto number = [&](int, int x) -> const RowNumbers<T>& { return numbers[x / 2]; };
  const Kind kind = p.scores.kind;
  const bool rescaled = p.form == Form::rescaled, plain = p.form == Form::plain, twice = plain || kind == Kind::sinh;
  Online<T> rows[2];
  walk.each_tile([&](int first, int stage) {
    typename W::Tile u, b;
    walk.product(u, 0, 0, first, stage);
    if (!twice || plain)
      fetch_target(walk, b, first, stage, number);
    else
      RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) b[j][x] = T(0);
    const uint32_t visible = walk.visible(first);
    hide(visible, u, b);
    with_kind(kind, [&](auto two_sided) {
      constexpr bool kTwoSided = decltype(two_sided)::value;
      const auto is_there = [&](int j, int x) { return !kTwoSided || (visible >> (4 * j + x) & 1) != 0; };
      RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
        Online<T>& r = rows[h];
        T most = -infinity<T>();
        RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j)
            RESCALED_UNROLL for (int x = 2 * h; x < 2 * h + 2; ++x) if (is_there(j, x)) most =
                greater(most, kTwoSided ? absolute(u[j][x]) : u[j][x]);
        r.rise(ceil(row_max(most) * static_cast<T>(kLog2e)));
        const T reference = r.reference > -infinity<T>() ? r.reference : T(0);
        T sum = 0;
        RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 2 * h; x < 2 * h + 2; ++x) {
          const T of = pair_of<kTwoSided>(kind == Kind::sinh, u[j][x], reference).u;
          u[j][x] = is_there(j, x) ? of : T(0);
          sum += u[j][x];
          const T size = absolute(b[j][x]);
          if (plain && size < infinity<T>()) r.largest = greater(r.largest, size);
        }
        r.sum += sum;
        if (!twice) add_centered<T, W::kTiles>(u, b, h, r);
      }
    });
  });
  join_rows(walk, rows);
  T loss[2] = {}, beta[2] = {}, square[2] = {};
  RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
    Online<T>& r = rows[h];
    T sum = r.sum;
    const bool empty = r.reference == -infinity<T>() && sum == T(0);  // not so if a score was not a number
    if (plain) {  // b stands beside u: the reference must not be far below it
      const T least = ceil(log2(r.largest));
      if (!empty && least > r.reference) sum *= cuda::exp2_vector<T>(r.reference - least), r.reference = least;
    }
    if (empty) r.reference = T(0), sum = T(1);
    const T teacher[2] = {numbers[h].teacher_reference, numbers[h].teacher_inverse};
    set_row<T>(p.form, r.reference, sum, numbers[h]);
    numbers[h].teacher_reference = teacher[0], numbers[h].teacher_inverse = teacher[1];
    rows[h].sum = sum;
    if (twice) continue;
    const T bb = r.bb, eb = r.eb, ee = r.ee, predicted = r.predicted, rest = sum - predicted;
    if (empty) continue;
    const T factor = rescaled ? T(1) : numbers[h].factor * numbers[h].factor;
    const T cc = ee - rest * (eb + eb - rest * bb);  // docs/math.md (11) for one row
    loss[h] = cc < T(0) ? T(0) : cc * factor;
    beta[h] = rescaled ? eb - rest * bb : (ee + (predicted - rest) * eb - predicted * rest * bb) * factor;
    square[h] = rescaled ? bb : (ee + predicted * (eb + eb + predicted * bb)) * factor;
  }
  if (twice) {
    walk.each_tile([&](int first, int stage) {
      typename W::Tile s, b;
      walk.product(s, 0, 0, first, stage);
      fetch_target(walk, b, first, stage, number);
      T sums[2][3] = {};
      for_elements(kind, walk.visible(first), s, b, number, [&](int, int x, const Element<T>& e) {
        const T other = rescaled ? e.b : e.u;
        sums[x / 2][0] += e.c * e.c, sums[x / 2][1] += other * e.c, sums[x / 2][2] += other * other;
      });
      RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
        loss[h] += sums[h][0];
        if (!plain) beta[h] += sums[h][1], square[h] += sums[h][2];
      }
    });
    T sums[6];
    RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
      sums[3 * h] = row_sum(loss[h]), sums[3 * h + 1] = row_sum(beta[h]), sums[3 * h + 2] = row_sum(square[h]);
    }
    walk.join(sums);
    RESCALED_UNROLL for (int h = 0; h < 2; ++h) loss[h] = sums[3 * h], beta[h] = sums[3 * h + 1],
                                                square[h] = sums[3 * h + 2];
  }
  const OutputView out = matrix(p.statistics, p.scores, walk.batch);
  RESCALED_UNROLL for (int h = 0; h < 2; ++h) {
    const int row = walk.row(2 * h);
    const T wrong = row_sum(is_sparse_row(p, walk.problem, row) ? T(0) : T(1));
    if (walk.t != 0 || walk.column_warp != 0 || row >= walk.row_count) continue;
    const auto put = [&](int64_t i, T x) {
      static_cast<T*>(out.data)[row * out.row + i * out.column] = wrong > T(0) ? static_cast<T>(NAN) : x;
    };
    put(Number::reference, rows[h].reference), put(Number::sum, rows[h].sum), put(Number::beta, beta[h]);
    put(Number::square, square[h]), put(Number::loss, loss[h] / 2);
  }
}

}  // namespace

const char* map_statistics(const MatrixRegressionParameters& p, void* stream) {
  return launch_map(MatrixPass::statistics, p, stream, [](auto element) { return statistics_walk<decltype(element)>; });
}

}  // namespace rescaled
