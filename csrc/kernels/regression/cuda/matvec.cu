// SPDX-License-Identifier: BSD-3-Clause
// A v: one read of A.
#include "lanes.cuh"
#include "passes.cuh"

namespace rescaled {
namespace {

constexpr int kMatvecWarps = 4;
struct MatvecPlan {
  int lanes, tile_rows;
  int64_t tiles, chunks;  // of a warp; blocks of a problem
  bool of_x;
  int64_t offset;
};

template <class T, bool kWhole>
__global__ void __launch_bounds__(32 * kMatvecWarps, 1)
    matvec_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ MatvecPlan plan) {
  using S = Number<T>;
  RESCALED_SHARED(memory);
  const int lane = thread_index() % 32, warp = thread_index() / 32, per = 32 / plan.lanes, place = lane / plan.lanes;
  S* const products = reinterpret_cast<S*>(memory) + warp * plan.tile_rows;
  const int64_t batch = block_index() / plan.chunks, chunk = block_index() % plan.chunks;
  const InputView A = matrix(p.A, p, batch), v = matrix(plan.of_x ? p.x : p.v, p, batch);
  OutputView out = matrix(p.products, p, batch);
  if (!out)
    out = {static_cast<char*>(p.workspace) + plan.offset + batch * p.rows * int64_t{sizeof(S)}, DType::float32, 1, 0};
  constexpr int kSegment = 32 * kWidth<T, kWhole>;
  const int d = static_cast<int>(p.columns);
  S x[kWidth<T, kWhole>];
  Columns<T, kWhole>(0, lane % plan.lanes, plan.lanes, d).load(v, x);
  RESCALED_ROLLED for (int64_t step = 0; step < plan.tiles; ++step) {
    const int64_t first = ((chunk * plan.tiles + step) * kMatvecWarps + warp) * plan.tile_rows;
    if (first >= p.rows) break;
    S s[kLoads] = {};
    RESCALED_ROLLED for (int base = 0; base < d; base += kSegment) {
      const Columns<T, kWhole> columns(base, lane % plan.lanes, plan.lanes, d);
      Tile<T, kWhole> tile;
      tile.load(A, columns, first + place, per, p.rows);
      if (d > kSegment) columns.load(v, x);
      tile.multiply(x, s);
    }
    sum_over(s, plan.lanes);
    if (lane % plan.lanes == 0) RESCALED_UNROLL for (int i = 0; i < kLoads; ++i) products[i * per + place] = s[i];
    warp_barrier();
    for (int k = lane; k < plan.tile_rows; k += 32)
      if (first + k < p.rows) static_cast<S*>(out.data)[(first + k) * out.row] = products[k];
    warp_barrier();
  }
}

}  // namespace

const char* regression_matvec(const RegressionParameters& p, bool of_x, int64_t offset, void* stream) {
  return with_element_type(p.A.dtype, [&](auto element) {
    using T = decltype(element);
    MatvecPlan plan{1, 0, 0, 0, of_x, offset};
    const bool whole = reads_whole<T>(p);
    const int width = whole ? kWidth<T, true> : kWidth<T, false>;
    while (plan.lanes < 32 && plan.lanes * width < p.columns) plan.lanes *= 2;
    plan.tile_rows = kLoads * (32 / plan.lanes);
    const int64_t tiles = parts_of(p.rows, plan.tile_rows * kMatvecWarps);
    plan.tiles = parts_of(tiles, blocks_wanted(p, sizeof(T))), plan.chunks = parts_of(tiles, plan.tiles);
    return launch(whole ? matvec_walk<T, true> : matvec_walk<T, false>, p.batches * plan.chunks, 32 * kMatvecWarps,
                  kMatvecWarps * plan.tile_rows * int64_t{sizeof(Number<T>)}, stream, p, plan);
  });
}

}  // namespace rescaled
