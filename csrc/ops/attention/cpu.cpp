// SPDX-License-Identifier: BSD-3-Clause
// The primitives on CPU: checks, outputs, workspace, threads.
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>

#include "../../kernels/random.h"
#include "binding.h"
#include "checks.h"

namespace rescaled::ops {
namespace {

// Tasks are handed out one by one: which thread runs one does not change what it computes.
void execute(const Program& program, AttentionParameters& p) {
  const at::DataPtr workspace = c10::GetCPUAllocator()->allocate(program.workspace_bytes);
  p.workspace = workspace.get();
  for (int i = 0; i < program.count; ++i) {
    const Step& step = program.steps[i];
    std::atomic<int64_t> next{0};
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), step.tasks);
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      at::DataPtr scratch;
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < step.tasks;) {
        // + 1: an allocation of 0 bytes would be null, and look like none.
        if (!scratch) scratch = c10::GetCPUAllocator()->allocate(step.scratch_bytes + 1);
        step.run(p, task, task + 1, scratch.get());
      }
    });
  }
}

Three forward(RESCALED_POINT, RESCALED_SETTINGS) {
  const Point x = RESCALED_THE_POINT;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_point("_attention_forward", x, settings);
  const Leading leading(x);
  const int64_t rows = query.size(-2);
  const auto statistics = query.options().dtype(accumulation_type(query));
  Tensor output = at::empty(leading.full({rows, value.size(-1)}), query.options());
  Tensor balance = at::empty(leading.full({rows}), statistics),
         log_normalizer = at::empty(leading.full({rows}), statistics);
  if (!leading.empty()) {
    AttentionParameters p = parameters(x, settings, leading);
    p.output = leading.output(output, 2), p.balance = leading.output(balance, 1),
    p.log_normalizer = leading.output(log_normalizer, 1);
    execute(attention_cpu_kernels().forward(p), p);
  }
  return {output, balance, log_normalizer};
}

// `type` of the tangent of the output: the double backward keeps it in the arithmetic type.
Saved jvp_of(const Point& x, const Leading& leading, const Tangents& tangents, const Saved& saved,
             const AttentionSettings& settings, at::ScalarType type) {
  const int64_t rows = x.query.size(-2);
  const auto statistics = x.query.options().dtype(accumulation_type(x.query));
  Saved out{at::empty(leading.full({rows, x.value.size(-1)}), x.query.options().dtype(type)),
            at::empty(leading.full({rows}), statistics), at::empty(leading.full({rows}), statistics)};
  if (!leading.empty()) {
    AttentionParameters p = parameters(x, settings, leading);
    set_tangents(p, leading, tangents), set_saved(p, leading, saved);
    p.output = leading.output(out.output, 2), p.balance = leading.output(out.balance, 1),
    p.log_normalizer = leading.output(out.log_normalizer, 1);
    execute(attention_cpu_kernels().jvp(p), p);
  }
  return out;
}

Three jvp(RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS) {
  const Point x = RESCALED_THE_POINT;
  const Saved saved = RESCALED_THE_SAVED;
  const Tangents tangents = RESCALED_THE_TANGENTS;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_jvp(x, tangents, saved, settings);
  const Leading leading(x);
  const Saved out = jvp_of(x, leading, tangents, saved, settings, query.scalar_type());
  return {out.output, out.balance, out.log_normalizer};
}

Four backward(RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS, std::array<bool, 4> need) {
  const Point x = RESCALED_THE_POINT;
  const Saved saved = RESCALED_THE_SAVED;
  const Cotangents cotangents = RESCALED_THE_COTANGENTS;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_backward(x, cotangents, saved, settings);
  const Leading leading(x);
  const Gradients gradients(x, leading, need);
  if (leading.empty()) {
    gradients.clear();
  } else {
    AttentionParameters p = parameters(x, settings, leading);
    set_saved(p, leading, saved);
    set_cotangents(p, leading, cotangents);
    gradients.set(p, leading);
    execute(attention_cpu_kernels().backward(p), p);
  }
  return {gradients.query.reduced(), gradients.key.reduced(), gradients.value.reduced(),
          gradients.bias.defined() ? gradients.bias : none(query)};
}

Seven double_backward(RESCALED_TANGENTS, RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS,
                      std::array<bool, 7> need) {
  const Point x = RESCALED_THE_POINT;
  const Saved saved = RESCALED_THE_SAVED;
  const Tangents tangents = RESCALED_THE_TANGENTS;
  const Cotangents cotangents = RESCALED_THE_COTANGENTS;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_double_backward(x, tangents, cotangents, saved, settings);
  const Leading leading(x);
  const Saved first = jvp_of(x, leading, tangents, saved, settings, accumulation_type(query));
  const Gradients gradients(x, leading, {need[3], need[4], need[5], need[6]});
  if (leading.empty()) {
    gradients.clear();
  } else if (need[3] || need[4] || need[5] || need[6]) {
    AttentionParameters p = parameters(x, settings, leading);
    set_tangents(p, leading, tangents), set_saved(p, leading, saved);
    set_cotangents(p, leading, cotangents);
    p.jvp_output = leading.input(first.output, 2), p.jvp_balance = leading.input(first.balance, 1),
    p.jvp_log_normalizer = leading.input(first.log_normalizer, 1);
    gradients.set(p, leading);
    execute(attention_cpu_kernels().double_backward(p), p);
  }
  const auto wanted = [&](bool is, const Tensor& t) { return is ? t : none(t); };
  return {wanted(need[0], first.output.to(query.scalar_type())),
          wanted(need[1], first.balance),
          wanted(need[2], first.log_normalizer),
          gradients.query.reduced(),
          gradients.key.reduced(),
          gradients.value.reduced(),
          gradients.bias.defined() ? gradients.bias : none(query)};
}

// The mask alone, for the plain-tensor formulas and for tests: true = kept.
Tensor dropout_mask(const Tensor& dropout_seed, int64_t queries, int64_t keys, double dropout_p) {
  check_dropout_mask(dropout_seed, queries, keys, dropout_p);
  std::vector<int64_t> sizes = dropout_seed.sizes().vec();
  sizes.push_back(queries), sizes.push_back(keys);
  Tensor mask = at::empty(sizes, dropout_seed.options().dtype(at::kBool));
  const Tensor seeds = dropout_seed.contiguous();
  const int64_t* seed = seeds.const_data_ptr<int64_t>();
  bool* to = mask.mutable_data_ptr<bool>();
  const uint32_t threshold = dropout_threshold(dropout_p);
  for (int64_t b = 0; b < seeds.numel(); ++b)
    for (int64_t i = 0; i < queries; ++i)
      for (int64_t j = 0; j < keys; ++j)
        *to++ =
            dropout_keeps(static_cast<uint32_t>(seed[b]), static_cast<uint32_t>(static_cast<uint64_t>(seed[b]) >> 32),
                          static_cast<uint32_t>(i), static_cast<uint32_t>(j), threshold);
  return mask;
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) {
  m.impl("_attention_forward", TORCH_FN(rescaled::ops::forward));
  m.impl("_attention_backward", TORCH_FN(rescaled::ops::backward));
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward));
  m.impl("_attention_dropout_mask", TORCH_FN(rescaled::ops::dropout_mask));
}
