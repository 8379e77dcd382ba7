// SPDX-License-Identifier: BSD-3-Clause
// Functions that CPU and CUDA kernels share: no symbols of their own, so that no instruction set leaks into another's.
#pragma once

#if defined(__CUDACC__)
#define RESCALED_HOST_DEVICE static __host__ __device__ inline
#else
#define RESCALED_HOST_DEVICE static inline __attribute__((always_inline))
#endif
