// SPDX-License-Identifier: BSD-3-Clause
// By queries: what each query brings to the gradients, and dQ = dS K (+ dS Kd, and dS2 for dS, in the double backward).
#include "gradient.cuh"
#include "kernels.cuh"

namespace rescaled {
namespace {

// One warp a query. delta = <G, W> + g_rho rho - g_l;  deltad = <G, Wd> + g_rho rhod
constexpr int kQueriesPerBlock = 4;

template <class S>
RESCALED_DEVICE S warp_dot(InputView x, InputView y, int64_t row, int64_t width) {
  S sum = 0;
  if (x.data != nullptr && y.data != nullptr)
    for (int64_t c = thread_index() % 32; c < width; c += 32)
      sum += number_at<S>(x, row * x.row + c * x.column) * number_at<S>(y, row * y.row + c * y.column);
  for (int lanes = 16; lanes > 0; lanes /= 2) sum += shuffle_xor(sum, lanes);
  return sum;
}

template <class S>
__global__ void __launch_bounds__(32 * kQueriesPerBlock, 1)
    query_numbers_walk(const __grid_constant__ AttentionParameters p, bool second, int64_t blocks) {
  const int64_t index = block_index(), b = index / blocks,
                query = index % blocks * kQueriesPerBlock + thread_index() / 32;
  if (query >= padded_queries(p)) return;  // a whole warp
  const bool there = query < p.queries;
  const auto number = [&](const Input& m) {
    const InputView v = matrix(m, p, b);
    return there && v.data != nullptr ? number_at<S>(v, query * v.row) : S(0);
  };
  const InputView grad_output = matrix(p.grad_output, p, b);
  QueryNumbers<S> q{};
  const int64_t width = there ? p.value_size : 0;
  set_normalizer(q, there ? number(p.saved_log_normalizer) : -infinity<S>());
  q.grad_balance = number(p.grad_balance);
  q.delta = warp_dot<S>(grad_output, matrix(p.saved_output, p, b), query, width) +
            q.grad_balance * number(p.saved_balance) - number(p.grad_log_normalizer);
  if (second) {
    q.tangent_normalizer = number(p.jvp_log_normalizer);
    q.tangent_delta =
        warp_dot<S>(grad_output, matrix(p.jvp_output, p, b), query, width) + q.grad_balance * number(p.jvp_balance);
  }
  const S numbers[] = {q.shift, q.exponent, q.factor, q.grad_balance, q.delta, q.tangent_normalizer, q.tangent_delta};
  if (thread_index() % 32 == 0)
    RESCALED_UNROLL for (int i = 0; i < kQueryArrays; ++i) query_numbers<S>(p, b, i)[query] = numbers[i];
}

template <class T, Pass kPass, Kinds kKinds, Path kPath>
RESCALED_DEVICE void query_block(const AttentionParameters& p, const Plan& plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, kPass, kPath, kKinds>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const int64_t b = walk.take_place();
  walk.set_problem(b);
  walk.load_rows();
  const QueryNumbers<S> numbers[2] = {row_numbers<S>(walk, b, 0), row_numbers<S>(walk, b, 1)};
  typename W::Outputs out = {};
  walk.pipeline(
      walk.last_tile(), [&](int i, int stage) { walk.load_columns(stage, i * W::kColumns); },
      [&](int i, int stage, auto next) {
        const int first = i * W::kColumns;
        GradientTile<W> tile;
        gradient_tile<T, kPass, kKinds>(
            walk, stage, first, 0, tile, [&](int, int x) -> const QueryNumbers<S>& { return numbers[x / 2]; }, next);
        walk.accumulate(out, tile.second, 0, stage, first);
        if constexpr (is_second(kPass)) walk.accumulate(out, tile.first, 2, stage, first);
        walk.settle();
      });
  walk.store(out, matrix(p.grad_query, p, b), p.head_size, static_cast<S>(p.scale));
}
template <class T, Pass kPass, Kinds kKinds, Path kPath>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    query_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  if constexpr (kIsCompiled<kPath>) query_block<T, kPass, kKinds, kPath>(p, plan);
}

template <class T, Pass kPass>
const char* run(const AttentionParameters& p, void* stream) {
  const Plan plan = plan_of<T>(p, kPass, this_device());
  return launch_walk<T>(p, plan, stream, [](auto path, auto kinds) {
    return query_walk<T, kPass, decltype(kinds)::value, decltype(path)::value>;
  });
}

}  // namespace

const char* attention_query_numbers(const AttentionParameters& p, bool second, void* stream) {
  const int64_t blocks = padded_queries(p) / kQueriesPerBlock;
  return launch(p.query.dtype == DType::float64 ? query_numbers_walk<double> : query_numbers_walk<float>,
                batches(p) * blocks, 32 * kQueriesPerBlock, 0, stream, p, second, blocks);
}

const char* attention_gradient_query(const AttentionParameters& p, bool second, void* stream) {
  return with_element_type(p.query.dtype, [&](auto element) {
    using T = decltype(element);
    return second ? run<T, Pass::query_second>(p, stream) : run<T, Pass::query>(p, stream);
  });
}

}  // namespace rescaled
