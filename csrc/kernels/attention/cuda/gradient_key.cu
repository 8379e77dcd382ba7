// SPDX-License-Identifier: BSD-3-Clause
// By keys: dV = a^T G, dK = dS^T Q; in the double backward dV = ad^T G, dK = dS2^T Q + dS^T Qd. A block meets the
// queries of every head of its key-value head's group.
#include "gradient.cuh"
#include "kernels.cuh"

namespace rescaled {
namespace {

template <class T, Pass kPass, Kinds kKinds, bool kResident>
__global__ void __launch_bounds__(32 * 4, 1)
    key_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, kPass, kResident>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const int64_t kv = walk.take_place(), first_tile = walk.first_tile(), last_tile = walk.last_tile(),
                tiles = last_tile > first_tile ? last_tile - first_tile : 0;
  const auto problem = [&](int64_t i) { return kv * p.group + i / tiles; };
  const auto parity = [&](int64_t i) { return static_cast<int>(i / tiles % 2); };
  const auto first_query = [&](int64_t i) { return (first_tile + i % tiles) * W::kColumns; };
  typename W::Outputs grad_key = {}, grad_value = {};
  walk.pipeline(
      tiles * p.group,
      [&](int64_t i, int stage) {
        if (i % tiles == 0) walk.set_problem(problem(i), parity(i));
        if (i == 0) walk.load_rows();
        walk.load_columns(stage, first_query(i), parity(i));
        S* const to = reinterpret_cast<S*>(walk.shared + walk.layout.numbers + stage * walk.layout.stage);
        RESCALED_ROLLED for (int n = thread_index(); n < kQueryArrays * W::kColumns; n += block_threads()) to[n] =
            query_number<S>(p, problem(i), n / W::kColumns, first_query(i) + n % W::kColumns);
      },
      [&](int64_t i, int stage) {
        const int64_t first = first_query(i);
        GradientTile<W> tile = {};
        const S* const from = reinterpret_cast<const S*>(walk.shared + walk.layout.numbers + stage * walk.layout.stage);
        gradient_tile<kPass, kKinds>(walk, stage, first, parity(i), tile, [&](int j, int x) {
          const S* const mine = from + 8 * j + 2 * walk.t + x % 2;
          return numbers_from<S>([&](int array) { return mine[array * W::kColumns]; });
        });
        if (p.grad_value.data != nullptr) walk.accumulate(grad_value, tile.value, 1, stage, first, parity(i));
        if (p.grad_key.data != nullptr) {
          walk.accumulate(grad_key, tile.second, 0, stage, first, parity(i));
          if constexpr (is_second(kPass)) walk.accumulate(grad_key, tile.first, 2, stage, first, parity(i));
        }
      });
  walk.store(grad_key, matrix(p.grad_key, p, kv * p.group), p.head_size, static_cast<S>(p.scale));
  walk.store(grad_value, matrix(p.grad_value, p, kv * p.group), p.value_size, S(1));
}

template <class T, Pass kPass>
const char* run(const AttentionParameters& p, void* stream) {
  const Plan plan = plan_of<T>(p, kPass, shared_bytes_of_device());
  return launch_walk(p, plan, stream, key_walk<T, kPass, Kinds::exp, true>, key_walk<T, kPass, Kinds::two_sided, true>,
                     key_walk<T, kPass, Kinds::all, false>);
}

}  // namespace

const char* attention_gradient_key(const AttentionParameters& p, bool second, void* stream) {
  return with_element_type(p.query.dtype, [&](auto element) {
    using T = decltype(element);
    return second ? run<T, Pass::key_second>(p, stream) : run<T, Pass::key>(p, stream);
  });
}

}  // namespace rescaled
