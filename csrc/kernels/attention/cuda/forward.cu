// SPDX-License-Identifier: BSD-3-Clause
// Forward: W = sum_j a_ij V_j, rho, l, with a running maximum of the scores' exponents (docs/math.md (1)). Where the
// keys are split (plan.h), each block leaves its sums and their base in the workspace, and a second kernel merges them.
#include "kernels.cuh"
#include "walk.cuh"
#include "weights.cuh"

namespace rescaled {
namespace {

// [batch][split][query]: the sums of weights times values, and three numbers: base, sum of weights, balance.
template <class S>
struct Partial {
  S *outputs, *numbers;
  RESCALED_MEMBER Partial(const AttentionParameters& p, int64_t splits, int64_t b, int64_t split) {
    const int64_t all = batches(p) * splits * p.queries, first = (b * splits + split) * p.queries;
    outputs = static_cast<S*>(p.workspace) + first * p.value_size;
    numbers = static_cast<S*>(p.workspace) + all * p.value_size + first * 3;
  }
};

// Stores the statistics of a query, from sums relative to 2^top; what its output is divided by, inverted.
template <class S>
RESCALED_DEVICE S finish(const AttentionParameters& p, int64_t b, int64_t query, bool stores, S top, S sum, S balance) {
  const bool keyless = sum == S(0);
  if (stores) {
    const OutputView balances = matrix(p.balance, p, b), normalizers = matrix(p.log_normalizer, p, b);
    store_at<S>(balances, query * balances.row, keyless ? S(0) : balance / sum);
    store_at<S>(normalizers, query * normalizers.row,
                keyless ? -infinity<S>() : top * static_cast<S>(kLn2) + natural_log(sum));
  }
  return keyless ? S(0) : 1 / sum;
}

template <class T, Kinds kKinds, bool kResident>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    forward_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, Pass::forward, kResident>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const int64_t b = walk.take_place();
  walk.set_problem(b);
  const Elementwise<S>& masks = walk.problems[0].masks;
  walk.load_rows();

  const S scale = static_cast<S>(p.scale * kLog2e);
  const bool two_sided = kKinds == Kinds::two_sided || (kKinds == Kinds::all && p.kind != Kind::exp);
  typename W::Outputs out = {};
  S top[2] = {-infinity<S>(), -infinity<S>()}, sum[2] = {}, balance[2] = {};
  const int64_t split = block_index() % plan.key_splits, tiles = walk.last_tile(),
                share = (tiles + plan.key_splits - 1) / plan.key_splits, begin = split * share,
                count = least(tiles - begin, share);
  walk.pipeline(
      count, [&](int64_t i, int stage) { walk.load_columns(stage, (begin + i) * W::kColumns); },
      [&](int64_t i, int stage) {
        const int64_t first = (begin + i) * W::kColumns;
        typename W::Scores score = {};
        walk.template product<false>(score, 0, 0, stage, first, 0);
        ElementValues<S, W::kTiles> values;
        fill_values(walk, masks, first, false, values);
        // Scores in units of log 2, and the exponents' maximum.
        S highest[2] = {-infinity<S>(), -infinity<S>()};
        RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
          const S s = score[j][x] *= scale;
          const S size = two_sided && s < 0 ? -s : s;
          const S level = size + values.log_weight(j, x);
          if (!(level <= highest[x / 2])) highest[x / 2] = level;  // a NaN stays
        }
        QueryNumbers<S> base[2];
        RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
          const S before = top[r], level = row_max(highest[r]);
          if (!(level <= before)) top[r] = level;
          const S shift = top[r] == -infinity<S>() ? S(0) : top[r];
          base[r].shift = shift, base[r].exponent = -shift, base[r].factor = S(1);
          if (two_sided) {
            const cuda::Weight<S> w = cuda::split_weight<S>(-shift);
            base[r].exponent = w.exponent, base[r].factor = w.factor;
          }
          const S rescale = exp2_of(before - shift);
          sum[r] *= rescale, balance[r] *= rescale;
          RESCALED_UNROLL for (int j = 0; j < W::kOut; ++j) out[j][2 * r] *= rescale, out[j][2 * r + 1] *= rescale;
        }
        RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
          const Weights<S> w =
              weights_of<S, kKinds>(p.kind, score[j][x], values.weighted, values.log_weight(j, x), base[x / 2]);
          sum[x / 2] += w.even, balance[x / 2] += w.a;
          score[j][x] = w.a * values.dropout(j, x);
        }
        walk.accumulate(out, score, 1, stage, first);
      });

  const bool stores = walk.first_output == 0 && walk.t == 0;
  RESCALED_UNROLL for (int r = 0; r < 2; ++r) sum[r] = row_sum(sum[r]), balance[r] = row_sum(balance[r]);
  if (plan.key_splits > 1) {
    const Partial<S> partial(p, plan.key_splits, b, split);
    RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
      S* const to = partial.numbers + walk.row(r) * 3;
      if (stores && walk.row(r) < p.queries) to[0] = top[r], to[1] = sum[r], to[2] = balance[r];
    }
    constexpr DType type = sizeof(S) == 8 ? DType::float64 : DType::float32;
    walk.store(out, OutputView{partial.outputs, type, p.value_size, 1}, p.value_size, S(1));
    return;
  }
  RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
    const int64_t query = walk.row(r);
    const S inverse = finish(p, b, query, stores && query < p.queries, top[r], sum[r], balance[r]);
    RESCALED_UNROLL for (int j = 0; j < W::kOut; ++j) out[j][2 * r] *= inverse, out[j][2 * r + 1] *= inverse;
  }
  walk.store(out, matrix(p.output, p, b), p.value_size, S(1));
}

// One warp a query. The splits are added in their order.
constexpr int kQueriesPerBlock = 4;

template <class S>
__global__ void __launch_bounds__(32 * kQueriesPerBlock, 1)
    merge_walk(const __grid_constant__ AttentionParameters p, int64_t splits, int64_t blocks) {
  const int64_t b = block_index() / blocks, query = block_index() % blocks * kQueriesPerBlock + thread_index() / 32;
  if (query >= p.queries) return;
  const int lane = thread_index() % 32;
  const auto number = [&](int64_t split, int i) { return Partial<S>(p, splits, b, split).numbers[query * 3 + i]; };
  S top = -infinity<S>(), sum = 0, balance = 0;
  for (int64_t n = 0; n < splits; ++n) {
    const S level = number(n, 0);
    if (!(level <= top)) top = level;  // a NaN stays
  }
  const S base = top == -infinity<S>() ? S(0) : top;
  for (int64_t n = 0; n < splits; ++n) {
    const S weight = exp2_of(number(n, 0) - base);
    sum += weight * number(n, 1), balance += weight * number(n, 2);
  }
  const S inverse = finish(p, b, query, lane == 0, top, sum, balance);
  const OutputView output = matrix(p.output, p, b);
  for (int64_t c = lane; c < p.value_size; c += 32) {
    S total = 0;
    for (int64_t n = 0; n < splits; ++n)
      total += exp2_of(number(n, 0) - base) * Partial<S>(p, splits, b, n).outputs[query * p.value_size + c];
    store_at<S>(output, query * output.row + c * output.column, total * inverse);
  }
}

}  // namespace

int64_t attention_forward_workspace_bytes(const AttentionParameters& p) {
  const int64_t splits = key_splits(p);
  if (splits == 1) return 0;
  return batches(p) * splits * p.queries * (p.value_size + 3) * (p.query.dtype == DType::float64 ? 8 : 4);
}

const char* attention_forward(const AttentionParameters& p, void* stream) {
  return with_element_type(p.query.dtype, [&](auto element) {
    using T = decltype(element);
    const Plan plan = plan_of<T>(p, Pass::forward, shared_bytes_of_device());
    const char* error = launch_walk(p, plan, stream, forward_walk<T, Kinds::exp, true>,
                                    forward_walk<T, Kinds::two_sided, true>, forward_walk<T, Kinds::all, false>);
    if (error != nullptr || plan.key_splits == 1) return error;
    const int64_t blocks = (p.queries + kQueriesPerBlock - 1) / kQueriesPerBlock;
    return launch(merge_walk<Scalar<T>>, batches(p) * blocks, 32 * kQueriesPerBlock, 0, stream, p, plan.key_splits,
                  blocks);
  });
}

}  // namespace rescaled
