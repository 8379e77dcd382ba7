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

template <class T, Kinds kKinds, Path kPath>
RESCALED_DEVICE void forward_block(const AttentionParameters& p, const Plan& plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, Pass::forward, kPath, kKinds>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const int64_t b = walk.take_place();
  walk.set_problem(b);
  const Elementwise<S>& masks = walk.problems[0].masks;
  walk.load_rows();

  const S scale = static_cast<S>(p.scale * kLog2e);
  // Warpgroups look for the highest product of rows, and scale that: their scale is positive.
  const S level_scale = W::kIsGroup ? scale : S(1), weight_scale = 1 / level_scale;
  const bool two_sided = kKinds != Kinds::exp && (kKinds == Kinds::two_sided || p.kind != Kind::exp);
  typename W::Outputs out = {};
  S top[2] = {-infinity<S>(), -infinity<S>()}, sum[2] = {}, balance[2] = {};
  const int splits = static_cast<int>(plan.key_splits), split = block_index() % splits, tiles = walk.last_tile(),
            share = (tiles + splits - 1) / splits, begin = split * share, count = least(tiles - begin, share);
  walk.pipeline(
      count, [&](int i, int stage) { walk.load_columns(stage, (begin + i) * W::kColumns); },
      [&](int i, int stage, auto next) {
        const int first = (begin + i) * W::kColumns;
        typename W::Scores score;
        walk.begin_products();
        walk.template product<false>(score, 0, 0, stage, first);
        walk.end_products();
        next.load();
        walk.settle();
        // The exponents' maximum; a NaN is passed over, its weight is none the less one.
        const Elements which = elements_of(walk, masks, first);
        S highest[2] = {-infinity<S>(), -infinity<S>()};
        const auto find_highest = [&](const auto& values, int j, int x, const S& product) {
          const S s = W::kIsGroup ? product : product * scale, size = two_sided ? absolute(s) : s;
          const S level = values.weighted ? size + values.log_weight(j, x) * weight_scale : size;
          highest[x / 2] = greater(highest[x / 2], level);
        };
        each_element(walk, masks, first, which, find_highest, score);
        QueryNumbers<S> base[2];
        S rescale[2];
        RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
          const S before = top[r];
          top[r] = greater(before, row_max(highest[r]) * level_scale);
          const S shift = top[r] == -infinity<S>() ? S(0) : top[r];
          base[r].shift = shift, base[r].exponent = -shift, base[r].factor = S(1);
          if (two_sided) {
            const cuda::Weight<S> w = cuda::split_weight<S>(-shift);
            base[r].exponent = w.exponent, base[r].factor = w.factor;
          }
          rescale[r] = exp2_of(before - shift);
          sum[r] *= rescale[r], balance[r] *= rescale[r];
        }
        if (any_lane(rescale[0] != S(1) || rescale[1] != S(1)))
          RESCALED_UNROLL for (int j = 0; j < W::kOut; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) out[j][x] *=
              rescale[x / 2];
        const auto weigh = [&](const auto& values, int j, int x, S& product) {
          const Weights<S> w = weights_of<T, kKinds>(p.kind, product, scale, values, j, x, base[x / 2]);
          sum[x / 2] += w.even;
          if (kKinds != Kinds::exp) balance[x / 2] += w.a;
          product = w.a * values.dropout(j, x);
        };
        each_element(walk, masks, first, which, weigh, score);
        next.announce();
        walk.accumulate(out, score, 1, stage, first);
        walk.settle();
      });

  const bool stores = walk.first_output == 0 && walk.t == 0;
  RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
    sum[r] = row_sum(sum[r]);
    balance[r] = kKinds == Kinds::exp ? sum[r] : row_sum(balance[r]);
  }
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
    const int query = walk.row(r);
    const S inverse = finish(p, b, query, stores && query < p.queries, top[r], sum[r], balance[r]);
    RESCALED_UNROLL for (int j = 0; j < W::kOut; ++j) out[j][2 * r] *= inverse, out[j][2 * r + 1] *= inverse;
  }
  walk.store(out, matrix(p.output, p, b), p.value_size, S(1));
}
template <class T, Kinds kKinds, Path kPath>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    forward_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  if constexpr (kIsCompiled<kPath>) forward_block<T, kKinds, kPath>(p, plan);
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
    const Plan plan = plan_of<T>(p, Pass::forward, this_device());
    const char* error = launch_walk<T>(p, plan, stream, [](auto path, auto kinds) {
      return forward_walk<T, decltype(kinds)::value, decltype(path)::value>;
    });
    if (error != nullptr || plan.key_splits == 1) return error;
    const int64_t blocks = (p.queries + kQueriesPerBlock - 1) / kQueriesPerBlock;
    return launch(merge_walk<Scalar<T>>, batches(p) * blocks, 32 * kQueriesPerBlock, 0, stream, p, plan.key_splits,
                  blocks);
  });
}

}  // namespace rescaled
