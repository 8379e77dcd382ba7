// SPDX-License-Identifier: BSD-3-Clause
// The gradient of the bias, summed over whatever it is broadcast along: a block owns a tile of the bias, and forms
// again every score that the tile reaches. Deterministic, and nothing larger than the bias itself.
#include "gradient.cuh"
#include "kernels.cuh"

namespace rescaled {
namespace {

template <class T, Pass kPass, Kinds kKinds, Path kPath>
RESCALED_DEVICE void bias_block(const AttentionParameters& p, const Plan& plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, kPass, kPath, kKinds>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const bool by_query = p.grad_bias.row != 0, by_key = p.grad_bias.column != 0;
  const int64_t rows = kWarpRows * plan.warps, key_tiles = (p.keys + W::kColumns - 1) / W::kColumns;
  const int64_t query_blocks = by_query ? plan.row_blocks : 1, key_blocks = by_key ? key_tiles : 1;
  const int64_t index = block_index(), key_block = index % key_blocks, query_block = index / key_blocks % query_blocks,
                kept = index / (key_blocks * query_blocks);
  const int64_t summed = bias_batches(p, false), tiles = by_key ? 1 : key_tiles;

  typename W::Scores sum = {};
  for (int64_t n = 0; n < summed; ++n) {
    const int64_t b = bias_problem(p, kept, n);
    walk.set_problem(b);
    for (int64_t block = query_block; block < (by_query ? query_block + 1 : plan.row_blocks); ++block) {
      walk.first_row = block * rows;
      const int64_t reach = walk.last_tile() - key_block, count = reach < 0 ? 0 : least(tiles, reach);
      if (count == 0) continue;
      walk.load_rows();
      const QueryNumbers<S> numbers[2] = {row_numbers<S>(walk, b, 0), row_numbers<S>(walk, b, 1)};
      const auto first_key = [&](int64_t i) { return (key_block + i) * W::kColumns; };
      walk.pipeline(
          count, [&](int i, int stage) { walk.load_columns(stage, first_key(i)); },
          [&](int i, int stage, auto next) {
            GradientTile<W> tile;
            gradient_tile<T, kPass, kKinds>(
                walk, stage, first_key(i), 0, tile,
                [&](int, int x) -> const QueryNumbers<S>& { return numbers[x / 2]; }, next);
            RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) sum[j][x] +=
                tile.second[j][x];
          });
    }
  }

  // Across the block, through shared memory, in a fixed order: [rows][kColumns] to what the bias has of it.
  constexpr int kLd = W::kColumns + 1;
  S* all = reinterpret_cast<S*>(memory);
  RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x)
      all[(walk.warp * kWarpRows + walk.g + 8 * (x / 2)) * kLd + 8 * j + 2 * walk.t + x % 2] = sum[j][x];
  block_barrier();
  const OutputView out = matrix(p.grad_bias, p, bias_problem(p, kept, 0));
  const int64_t first_query = query_block * rows, first_key = key_block * W::kColumns;
  const int out_rows = by_query ? static_cast<int>(rows) : 1, out_columns = by_key ? W::kColumns : 1;
  for (int i = thread_index(); i < out_rows * out_columns; i += block_threads()) {
    const int r = i / out_columns, c = i % out_columns;
    S total = 0;
    for (int y = r; y < (by_query ? r + 1 : static_cast<int>(rows)); ++y)
      for (int x = c; x < (by_key ? c + 1 : W::kColumns); ++x) total += all[y * kLd + x];
    const int64_t query = first_query + r, key = first_key + c;
    if ((!by_query || query < p.queries) && (!by_key || key < p.keys))
      store_at<S>(out, (by_query ? query * out.row : 0) + (by_key ? key * out.column : 0), total);
  }
}
template <class T, Pass kPass, Kinds kKinds, Path kPath>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    bias_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  if constexpr (kIsCompiled<kPath>) bias_block<T, kPass, kKinds, kPath>(p, plan);
}

template <class T, Pass kPass>
const char* run(const AttentionParameters& p, void* stream) {
  Plan plan = plan_of<T>(p, kPass, this_device());
  const int columns = tile_columns<T>(kPass, plan.path, kinds_of(p.kind, plan.path));
  const int64_t sums = kWarpRows * plan.warps * (columns + 1) * static_cast<int64_t>(sizeof(Scalar<T>));
  plan.shared_bytes = plan.shared_bytes < sums ? sums : plan.shared_bytes;
  plan.blocks = bias_batches(p, true) * (p.grad_bias.row != 0 ? plan.row_blocks : 1) *
                (p.grad_bias.column != 0 ? (p.keys + columns - 1) / columns : 1);
  return launch_walk<T, false>(p, plan, stream, [](auto path, auto kinds) {
    return bias_walk<T, kPass, decltype(kinds)::value, decltype(path)::value>;
  });
}

}  // namespace

const char* attention_gradient_bias(const AttentionParameters& p, bool second, void* stream) {
  return with_element_type(p.query.dtype, [&](auto element) {
    using T = decltype(element);
    return second ? run<T, Pass::bias_second>(p, stream) : run<T, Pass::bias>(p, stream);
  });
}

}  // namespace rescaled
