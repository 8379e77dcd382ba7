// SPDX-License-Identifier: BSD-3-Clause
// By keys: dV = a^T G, dK = dS^T Q; in the double backward dV = ad^T G, dK = dS2^T Q + dS^T Qd. A block meets the
// queries of every head of its key-value head's group.
#include "gradient.cuh"
#include "kernels.cuh"

namespace rescaled {
namespace {

template <class T, Pass kPass, Kinds kKinds, Path kPath>
RESCALED_DEVICE void key_block(const AttentionParameters& p, const Plan& plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, kPass, kPath, kKinds>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const int64_t kv = walk.take_place();
  const int first_tile = walk.first_tile(), last_tile = walk.last_tile(),
            tiles = last_tile > first_tile ? last_tile - first_tile : 0, group = static_cast<int>(p.group);
  const auto head = [&](int i) { return group == 1 ? 0 : i / tiles; };
  const auto parity = [&](int i) { return head(i) & 1; };
  const auto first_query = [&](int i) { return (first_tile + i - head(i) * tiles) * W::kColumns; };
  typename W::Outputs grad_key = {}, grad_value = {};
  walk.pipeline(
      tiles * group,
      [&](int i, int stage) {
        const int64_t problem = kv * group + head(i);
        if (i == head(i) * tiles) {
          if (W::kIsGroup && i > 0) block_barrier();  // both warpgroups are done with the head before the last
          walk.set_problem(problem, parity(i));
        }
        if (i == 0) walk.load_rows();
        walk.load_columns(stage, first_query(i), parity(i));
        S* const to = walk.numbers(stage);
        constexpr int kVector = 16 / sizeof(S), kVectors = W::kColumns / kVector;
        for (int n = thread_index(); n < kQueryArrays * kVectors; n += block_threads()) {
          const int array = n / kVectors, c = n % kVectors * kVector;
          copy_async(to + array * W::kColumns + c, query_numbers<S>(p, problem, array) + first_query(i) + c);
        }
      },
      [&](int i, int stage, auto next) {
        const int first = first_query(i);
        GradientTile<W> tile;
        const S* const from = walk.numbers(stage);
        const auto numbers = [&](int j, int x) {
          const S* const mine = from + 8 * j + 2 * walk.t + x % 2;
          return numbers_from<S>([&](int array) { return mine[array * W::kColumns]; });
        };
        gradient_tile<T, kPass, kKinds>(walk, stage, first, parity(i), tile, numbers, next);
        // A warpgroup's products go on without a question between them.
        if (W::kIsGroup || p.grad_value.data != nullptr)
          walk.accumulate(grad_value, tile.value, 1, stage, first, parity(i));
        if (W::kIsGroup || p.grad_key.data != nullptr) {
          walk.accumulate(grad_key, tile.second, 0, stage, first, parity(i));
          if constexpr (is_second(kPass)) walk.accumulate(grad_key, tile.first, 2, stage, first, parity(i));
        }
        walk.settle();
      });
  walk.store(grad_key, matrix(p.grad_key, p, kv * p.group), p.head_size, static_cast<S>(p.scale));
  walk.store(grad_value, matrix(p.grad_value, p, kv * p.group), p.value_size, S(1));
}
template <class T, Pass kPass, Kinds kKinds, Path kPath>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    key_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  if constexpr (kIsCompiled<kPath>) key_block<T, kPass, kKinds, kPath>(p, plan);
}

template <class T, Pass kPass>
const char* run(const AttentionParameters& p, void* stream) {
  const Plan plan = plan_of<T>(p, kPass, this_device());
  return launch_walk<T>(p, plan, stream, [](auto path, auto kinds) {
    return key_walk<T, kPass, decltype(kinds)::value, decltype(path)::value>;
  });
}

}  // namespace

const char* attention_gradient_key(const AttentionParameters& p, bool second, void* stream) {
  return with_element_type(p.query.dtype, [&](auto element) {
    using T = decltype(element);
    return second ? run<T, Pass::key_second>(p, stream) : run<T, Pass::key>(p, stream);
  });
}

}  // namespace rescaled
