// SPDX-License-Identifier: BSD-3-Clause
// The steps of the primitives on the host, one a file, put together by run.cu. Each enqueues its kernel and returns the
// name of an error, or nullptr.
#pragma once
#include "../../cuda/device.cuh"
#include "../../element.h"
#include "plan.h"

namespace rescaled {

int64_t attention_forward_workspace_bytes(const AttentionParameters&);
const char* attention_forward(const AttentionParameters&, void* stream);
const char* attention_jvp(const AttentionParameters&, void* stream);
// What the gradients' walks read of each query (weights.cuh), into the workspace.
const char* attention_query_numbers(const AttentionParameters&, bool second, void* stream);
const char* attention_gradient_query(const AttentionParameters&, bool second, void* stream);
const char* attention_gradient_key(const AttentionParameters&, bool second, void* stream);
const char* attention_gradient_bias(const AttentionParameters&, bool second, void* stream);

// Of the three kernels of a walk the one that serves this problem.
template <class Kernel>
const char* launch_walk(const AttentionParameters& p, const Plan& plan, void* stream, Kernel exp, Kernel two_sided,
                        Kernel blocked) {
  return launch(!plan.resident        ? blocked
                : p.kind == Kind::exp ? exp
                                      : two_sided,
                plan.blocks, 32 * plan.warps, plan.shared_bytes, stream, p, plan);
}

template <class Function>
const char* with_element_type(DType dtype, Function f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::float64:
      return f(double{});
    case DType::bfloat16:
      return f(BFloat16{});
    default:
      return f(Float16{});
  }
}

}  // namespace rescaled
