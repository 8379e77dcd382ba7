// SPDX-License-Identifier: BSD-3-Clause
// Functions that CPU and CUDA kernels share: no symbols of their own, so that no instruction set leaks into another's.
#pragma once
#include <cstdint>

#if defined(__CUDACC__)
#define RESCALED_HOST_DEVICE static __host__ __device__ inline
#define RESCALED_HOST_DEVICE_CALL RESCALED_HOST_DEVICE
#else
#define RESCALED_HOST_DEVICE static inline __attribute__((always_inline))
#define RESCALED_HOST_DEVICE_CALL static __attribute__((noinline))  // of templates, where a call costs nothing
#endif

namespace rescaled {
namespace {

constexpr double kLog2e = 1.4426950408889634, kLn2 = 0.6931471805599453;

RESCALED_HOST_DEVICE int64_t round_up(int64_t n, int64_t m) { return (n + m - 1) / m * m; }

}  // namespace
}  // namespace rescaled
