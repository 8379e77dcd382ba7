// SPDX-License-Identifier: BSD-3-Clause
// The primitives on CPU: workspace and threads.
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>

#include "../../kernels/random.h"
#include "fused.h"

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

struct Cpu {
  static bool serves(const Point&, const Leading&) { return true; }
  static void forward(AttentionParameters& p, const Tensor&) { execute(attention_cpu_kernels().forward(p), p); }
  static void jvp(AttentionParameters& p, const Tensor&) { execute(attention_cpu_kernels().jvp(p), p); }
  static void backward(AttentionParameters& p, const Tensor&) { execute(attention_cpu_kernels().backward(p), p); }
  static void double_backward(AttentionParameters& p, const Tensor&) {
    execute(attention_cpu_kernels().double_backward(p), p);
  }

  static bool serves_dropout_mask(const Tensor&) { return true; }
  static void dropout_mask(const Tensor& seeds, int64_t queries, int64_t keys, double dropout_p, Tensor& mask) {
    const int64_t* seed = seeds.const_data_ptr<int64_t>();
    bool* to = mask.mutable_data_ptr<bool>();
    const uint32_t threshold = dropout_threshold(dropout_p);
    for (int64_t b = 0; b < seeds.numel(); ++b)
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t j = 0; j < keys; ++j)
          *to++ =
              dropout_keeps(static_cast<uint32_t>(seed[b]), static_cast<uint32_t>(static_cast<uint64_t>(seed[b]) >> 32),
                            static_cast<uint32_t>(i), static_cast<uint32_t>(j), threshold);
  }
};

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) {
  using rescaled::ops::Cpu;
  m.impl("_attention_forward", TORCH_FN(rescaled::ops::forward<Cpu>));
  m.impl("_attention_backward", TORCH_FN(rescaled::ops::backward<Cpu>));
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp<Cpu>));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward<Cpu>));
  m.impl("_attention_dropout_mask", TORCH_FN(rescaled::ops::dropout_mask<Cpu>));
}
