// SPDX-License-Identifier: BSD-3-Clause
// The gradient of the bias, summed over whatever the bias is broadcast along. A task owns a block of the bias and
// recomputes the scores it needs (2 units in the backward, up to 5 in the double backward): right for every broadcast
// shape, deterministic, and nothing larger than the bias itself.
#pragma once
#include "gradient_steps.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class E>
struct BiasTasks {
  bool by_query, by_key;
  int64_t query_blocks, key_panels, tasks;
  explicit BiasTasks(const AttentionParameters& p) : by_query(p.grad_bias.row != 0), by_key(p.grad_bias.column != 0) {
    query_blocks = by_query ? (p.queries + kQueryBlock - 1) / kQueryBlock : 1;
    key_panels = by_key ? panels_of<E>(p.keys) : 1;
    tasks = bias_batches(p, true) * query_blocks * key_panels;
  }
};

template <class E>
struct BiasScratch : GradientScratch<E> {
  double* sum;  // [kQueryBlock][kPanel], over whatever the bias is broadcast along
  BiasScratch(const AttentionParameters& p, Arena& arena)
      : GradientScratch<E>(p, arena), sum(arena.template take<double>(kQueryBlock * kPanel<E>)) {}
};

template <class E, bool kTwoSided, bool kSecond>
static void bias_block(const AttentionParameters& p, const Problem& g, const GradientWorkspace<E>& space, int64_t b,
                       Block block, bool by_query, bool by_key, BiasScratch<E>& s) {
  TileInput<E> in = query_block<E>(p, g, space, b, block.query, block.rows, s);
  set_panel<E>(p, g, block, 0, s, in);
  const TileOutput<Sum<E>> out{s.value_weights, s.score_gradient, s.tangent_score_gradient, s.tangent_e, true};
  gradient_block<E, kTwoSided, kSecond>(p, 0, block.rows, in, space.row_data(b, block.query), out);
  for (int64_t r = 0; r < block.rows; ++r) {
    double* sum = s.sum + (by_query ? r : 0) * kPanel<E>;
    const Sum<E>* from = s.score_gradient + r * kPanel<E>;
    if (by_key)
      for (int64_t x = 0; x < block.lanes; ++x) sum[x] += from[x];
    else
      for (int64_t x = 0; x < block.lanes; ++x) sum[0] += from[x];
  }
}

template <class E, bool kTwoSided, bool kSecond>
static void bias_task(const AttentionParameters& p, int64_t task, BiasScratch<E>& s) {
  const BiasTasks<E> grid(p);
  const GradientWorkspace<E> space = workspace<E>(p);
  const int64_t panel = task % grid.key_panels, query_block = task / grid.key_panels % grid.query_blocks,
                kept = task / (grid.key_panels * grid.query_blocks);
  const int64_t first_query = query_block * kQueryBlock,
                last_query =
                    grid.by_query && first_query + kQueryBlock < p.queries ? first_query + kQueryBlock : p.queries;
  const int64_t first_key = panel * kPanel<E>,
                last_key = grid.by_key && first_key + kPanel<E> < p.keys ? first_key + kPanel<E> : p.keys;
  std::memset(s.sum, 0, sizeof(double) * kQueryBlock * kPanel<E>);
  clear_elementwise(p, s);
  const int64_t summed = bias_batches(p, false);
  for (int64_t i = 0; i < summed; ++i) {
    const int64_t b = bias_problem(p, kept, i);
    const Problem g(p, b);
    for (int64_t k = first_key; k < last_key; k += kPanel<E>) {
      const int64_t lanes = last_key - k < kPanel<E> ? last_key - k : kPanel<E>;
      pack_key_panel<E>(p, g, k, lanes, 0, s);
      for (int64_t q = first_query; q < last_query; q += kQueryBlock) {
        const int64_t rows = last_query - q < kQueryBlock ? last_query - q : kQueryBlock;
        if (p.causal && q + rows <= k) continue;
        bias_block<E, kTwoSided, kSecond>(p, g, space, b, {q, k, rows, lanes}, grid.by_query, grid.by_key, s);
      }
    }
  }
  const OutputView out = matrix(p.grad_bias, p, bias_problem(p, kept, 0));
  with_type(out.dtype, out.data, [&](auto* to) {
    for (int64_t r = 0; r < (grid.by_query ? last_query - first_query : 1); ++r)
      for (int64_t x = 0; x < (grid.by_key ? last_key - first_key : 1); ++x)
        assign(to[(first_query + r) * out.row + (first_key + x) * out.column],
               static_cast<Sum<E>>(s.sum[r * kPanel<E> + x]));
  });
}

template <class E, bool kSecond>
static void bias_run(const AttentionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  BiasScratch<E> scratch(p, arena);
  take_tiles();
  for (int64_t task = begin; task < end; ++task) {
    if (p.kind == Kind::exp)
      bias_task<E, false, kSecond>(p, task, scratch);
    else
      bias_task<E, true, kSecond>(p, task, scratch);
  }
  give_tiles_back();
}

template <class E, bool kSecond>
static AttentionProgram gradient_program(const AttentionParameters& p) {
  AttentionProgram program;
  program.workspace_bytes = bytes_of<GradientWorkspace<E>>(p);
  const int64_t row_tasks = batches(p) * row_blocks(p);
  const auto add = [&](Step<AttentionParameters> step) { program.steps[program.count++] = step; };
  add({row_tasks, bytes_of<RowScratch<Sum<E>>>(p), rows_run<E, kSecond>});
  if (p.grad_query || p.grad_key || p.grad_value)
    add({p.kv_batches * key_chunks<E>(p), bytes_of<GradientScratch<E>>(p), gradient_run<E, kSecond>});
  if (p.grad_query) add({row_tasks, 0, sum_query_run<E>});
  if (p.grad_bias) add({BiasTasks<E>(p).tasks, bytes_of<BiasScratch<E>>(p), bias_run<E, kSecond>});
  return program;
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
