// SPDX-License-Identifier: BSD-3-Clause
// Work of a CPU kernel, cut by shapes alone.
#pragma once
#include <cstdint>

namespace rescaled {

// Work for a pool of threads: tasks [0, tasks) in any order, each task once; every thread brings `scratch_bytes`,
// aligned to 64 bytes.
template <class Parameters>
struct Step {
  int64_t tasks = 0, scratch_bytes = 0;
  void (*run)(const Parameters&, int64_t begin, int64_t end, void* scratch) = nullptr;
};
// Steps run one after another. What a task computes depends on the shapes alone, never on the threads.
template <class Parameters>
struct Program {
  Step<Parameters> steps[4];
  int count = 0;
  int64_t workspace_bytes = 0;
};

}  // namespace rescaled
