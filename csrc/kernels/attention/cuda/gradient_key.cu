// SPDX-License-Identifier: BSD-3-Clause
// By keys: dV = a^T G, dK = dS^T Q; in the double backward dV = ad^T G, dK = dS2^T Q + dS^T Qd. A block meets the queries
// of every head of its key-value head's group.
#include "gradient.h"
#include "kernels.h"

namespace rescaled {
namespace {

template <class T, Pass kPass, bool kTwoSided>
__global__ void __launch_bounds__(32 * 4)
    key_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, kPass>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const int64_t kv = walk.take_place(), first_tile = walk.first_tile(), last_tile = walk.last_tile(),
                tiles = last_tile > first_tile ? last_tile - first_tile : 0;
  walk.set_operands(true, kv * p.group, walk.row_operand);
  walk.load_rows();
  const auto problem = [&](int64_t i) { return kv * p.group + i / tiles; };
  const auto first_query = [&](int64_t i) { return (first_tile + i % tiles) * W::kColumns; };
  typename W::Outputs grad_key = {}, grad_value = {};
  walk.pipeline(
      tiles * p.group,
      [&](int64_t i, int stage) {
        walk.set_operands(false, problem(i), walk.column_operand);
        walk.load_columns(stage, first_query(i));
        S* const to = reinterpret_cast<S*>(walk.shared + walk.layout.numbers + stage * walk.layout.stage);
        RESCALED_ROLLED for (int n = thread_index(); n < kQueryArrays * W::kColumns; n += block_threads())
            to[n] = query_number<S>(p, problem(i), n / W::kColumns, first_query(i) + n % W::kColumns);
      },
      [&](int64_t i, int stage) {
        const int64_t b = problem(i), first = first_query(i);
        walk.set_operands(false, b, walk.column_operand);
        const Elementwise<S> masks(p, b);
        GradientTile<W> tile = {};
        const S* const from = reinterpret_cast<const S*>(walk.shared + walk.layout.numbers + stage * walk.layout.stage);
        gradient_tile<T, kPass, kTwoSided>(walk, masks, stage, first, tile, [&](int j, int x) {
          const S* const mine = from + 8 * j + 2 * walk.t + x % 2;
          return numbers_from<S>([&](int array) { return mine[array * W::kColumns]; });
        });
        if (p.grad_value) walk.accumulate(grad_value, tile.value, 1, stage, first);
        if (p.grad_key) {
          walk.accumulate(grad_key, tile.second, 0, stage, first);
          if constexpr (is_second(kPass)) walk.accumulate(grad_key, tile.first, 2, stage, first);
        }
      });
  walk.store(grad_key, matrix(p.grad_key, p, kv * p.group), p.head_size, static_cast<S>(p.scale));
  walk.store(grad_value, matrix(p.grad_value, p, kv * p.group), p.value_size, S(1));
}

template <class T, Pass kPass>
const char* run(const AttentionParameters& p, void* stream) {
  const Plan plan = plan_of<T>(p, kPass, shared_bytes_of_device());
  return launch(p.kind == Kind::exp ? key_walk<T, kPass, false> : key_walk<T, kPass, true>, plan.blocks,
                32 * plan.warps, plan.shared_bytes, stream, p, plan);
}

}  // namespace

const char* attention_gradient_key(const AttentionParameters& p, bool second, void* stream) {
  return with_element_type(p.query.dtype, [&](auto element) {
    using T = decltype(element);
    return second ? run<T, Pass::key_second>(p, stream) : run<T, Pass::key>(p, stream);
  });
}

}  // namespace rescaled
