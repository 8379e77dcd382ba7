// SPDX-License-Identifier: BSD-3-Clause
// The steps of the primitives on the host, one a file, put together by run.cu. Each enqueues its kernel and returns the
// name of an error, or nullptr.
#pragma once
#include <type_traits>

#include "../../cuda/device.cuh"
#include "../../cuda/element_type.h"
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

inline Device this_device() { return {shared_bytes_of_device(), device_has_warpgroups()}; }

// Launches the kernel of a walk that serves this problem: kernel(path, kinds), both as types, names it.
template <class T, bool kHasGroups = sizeof(T) == 2, class Kernel>
const char* launch_walk(const AttentionParameters& p, const Plan& plan, void* stream, Kernel kernel) {
  const auto launch_path = [&](auto path) {
    constexpr bool kBlocked = decltype(path)::value == Path::blocked;
    const auto launch_kinds = [&](auto kinds) {
      return launch(kernel(path, kinds), plan.blocks, 32 * plan.warps, plan.shared_bytes, stream, p, plan);
    };
    if constexpr (kBlocked)
      return launch_kinds(std::integral_constant<Kinds, Kinds::all>{});
    else
      return p.kind == Kind::exp ? launch_kinds(std::integral_constant<Kinds, Kinds::exp>{})
                                 : launch_kinds(std::integral_constant<Kinds, Kinds::two_sided>{});
  };
  if constexpr (kHasGroups) {
    if (plan.path == Path::group64) return launch_path(std::integral_constant<Path, Path::group64>{});
    if (plan.path == Path::group128) return launch_path(std::integral_constant<Path, Path::group128>{});
  }
  if (plan.path == Path::blocked) return launch_path(std::integral_constant<Path, Path::blocked>{});
  return launch_path(std::integral_constant<Path, Path::resident>{});
}

}  // namespace rescaled
