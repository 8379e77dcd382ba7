// SPDX-License-Identifier: BSD-3-Clause
// The walk of a path.
#pragma once
#include <type_traits>

#include "group_walk.cuh"
#include "warp_walk.cuh"

namespace rescaled {
namespace {

template <class T, Pass kPass, Path kPath, Kinds kKinds>
using Walk =
    std::conditional_t<(group_size(kPath) > 0), GroupWalk<T, kPass, kPath, kKinds>, WarpWalk<T, kPass, kPath, kKinds>>;

// Whether this architecture has the instructions of a path.
template <Path kPath>
constexpr bool kIsCompiled = group_size(kPath) == 0 || RESCALED_HAS_WARPGROUPS;

}  // namespace
}  // namespace rescaled
