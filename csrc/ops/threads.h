// SPDX-License-Identifier: BSD-3-Clause
// CPU kernels on torch's threads.
#pragma once
#include <ATen/Parallel.h>
#include <c10/core/CPUAllocator.h>

#include <algorithm>
#include <atomic>

#include "../kernels/program.h"

namespace rescaled::ops {

// Tasks are handed out one by one: which thread runs one does not change what it computes.
template <class Parameters>
void execute(const Program<Parameters>& program, Parameters& p) {
  const at::DataPtr workspace = c10::GetCPUAllocator()->allocate(program.workspace_bytes);
  p.workspace = workspace.get();
  for (int i = 0; i < program.count; ++i) {
    const Step<Parameters>& step = program.steps[i];
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

}  // namespace rescaled::ops
