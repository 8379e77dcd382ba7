// SPDX-License-Identifier: BSD-3-Clause
// The gradient of the bias, summed over whatever the bias is broadcast along. A task owns a block of the bias and
// recomputes the scores it needs (2 units in the backward, up to 5 in the double backward): right for every broadcast
// shape, deterministic, and nothing larger than the bias itself.
#pragma once
#include "gradient_steps.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
struct BiasTasks {
  bool by_query, by_key;
  int64_t query_blocks, key_panels, tasks;
  explicit BiasTasks(const AttentionParameters& p) : by_query(p.grad_bias.row != 0), by_key(p.grad_bias.column != 0) {
    query_blocks = by_query ? (p.queries + kQueryBlock - 1) / kQueryBlock : 1;
    key_panels = by_key ? (p.keys + kPanel<T> - 1) / kPanel<T> : 1;
    tasks = bias_batches(p, true) * query_blocks * key_panels;
  }
};

template <class T>
struct BiasScratch : GradientScratch<T> {
  double* sum;  // [kQueryBlock][kPanel], over whatever the bias is broadcast along
  BiasScratch(const AttentionParameters& p, Arena& arena)
      : GradientScratch<T>(p, arena), sum(arena.template take<double>(kQueryBlock * kPanel<T>)) {}
};

template <class T, bool kTwoSided, bool kSecond>
static void bias_block(const AttentionParameters& p, const Problem& g, const GradientWorkspace<T>& space, int64_t b,
                       Block block, bool by_query, bool by_key, BiasScratch<T>& s) {
  TileInput<T> in = query_block<T>(space, b, block.query);
  set_panel<T>(p, g, block, 0, s, in);
  const TileOutput<T> out{s.value_weights, s.score_gradient, s.tangent_score_gradient, s.tangent_e, true};
  gradient_block<T, kTwoSided, kSecond>(p, 0, block.rows, in, space.row_data(b, block.query), out);
  for (int64_t r = 0; r < block.rows; ++r) {
    double* sum = s.sum + (by_query ? r : 0) * kPanel<T>;
    const T* from = s.score_gradient + r * kPanel<T>;
    if (by_key)
      for (int64_t x = 0; x < block.lanes; ++x) sum[x] += from[x];
    else
      for (int64_t x = 0; x < block.lanes; ++x) sum[0] += from[x];
  }
}

template <class T, bool kTwoSided, bool kSecond>
static void bias_task(const AttentionParameters& p, int64_t task, BiasScratch<T>& s) {
  const BiasTasks<T> grid(p);
  const GradientWorkspace<T> space = workspace<T>(p);
  const int64_t panel = task % grid.key_panels, query_block = task / grid.key_panels % grid.query_blocks,
                kept = task / (grid.key_panels * grid.query_blocks);
  const int64_t first_query = query_block * kQueryBlock,
                last_query =
                    grid.by_query && first_query + kQueryBlock < p.queries ? first_query + kQueryBlock : p.queries;
  const int64_t first_key = panel * kPanel<T>,
                last_key = grid.by_key && first_key + kPanel<T> < p.keys ? first_key + kPanel<T> : p.keys;
  std::memset(s.sum, 0, sizeof(double) * kQueryBlock * kPanel<T>);
  clear_elementwise(s);
  const int64_t summed = bias_batches(p, false);
  for (int64_t i = 0; i < summed; ++i) {
    const int64_t b = bias_problem(p, kept, i);
    const Problem g(p, b);
    for (int64_t k = first_key; k < last_key; k += kPanel<T>) {
      pack_key_panel<T>(p, g, k, 0, s);
      const int64_t lanes = last_key - k < kPanel<T> ? last_key - k : kPanel<T>;
      for (int64_t q = first_query; q < last_query; q += kQueryBlock) {
        const int64_t rows = last_query - q < kQueryBlock ? last_query - q : kQueryBlock;
        if (p.causal && q + rows <= k) continue;
        bias_block<T, kTwoSided, kSecond>(p, g, space, b, {q, k, rows, lanes}, grid.by_query, grid.by_key, s);
      }
    }
  }
  const OutputView out = matrix(p.grad_bias, p, bias_problem(p, kept, 0));
  with_type(out.dtype, out.data, [&](auto* to) {
    for (int64_t r = 0; r < (grid.by_query ? last_query - first_query : 1); ++r)
      for (int64_t x = 0; x < (grid.by_key ? last_key - first_key : 1); ++x)
        assign(to[(first_query + r) * out.row + (first_key + x) * out.column],
               static_cast<T>(s.sum[r * kPanel<T> + x]));
  });
}

template <class T, bool kSecond>
static void bias_run(const AttentionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  BiasScratch<T> scratch(p, arena);
  for (int64_t task = begin; task < end; ++task) {
    if (p.kind == Kind::exp)
      bias_task<T, false, kSecond>(p, task, scratch);
    else
      bias_task<T, true, kSecond>(p, task, scratch);
  }
}

template <class T, bool kSecond>
static AttentionProgram gradient_program(const AttentionParameters& p) {
  AttentionProgram program;
  program.workspace_bytes = bytes_of<GradientWorkspace<T>>(p);
  const int64_t row_tasks = batches(p) * row_blocks(p);
  const auto add = [&](Step<AttentionParameters> step) { program.steps[program.count++] = step; };
  add({row_tasks, bytes_of<RowScratch<T>>(p), rows_run<T, kSecond>});
  if (p.grad_query || p.grad_key || p.grad_value)
    add({p.kv_batches * key_chunks<T>(p), bytes_of<GradientScratch<T>>(p), gradient_run<T, kSecond>});
  if (p.grad_query) add({row_tasks, 0, sum_query_run<T>});
  if (p.grad_bias) add({BiasTasks<T>(p).tasks, bytes_of<BiasScratch<T>>(p), bias_run<T, kSecond>});
  return program;
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
