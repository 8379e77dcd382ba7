// SPDX-License-Identifier: BSD-3-Clause
// What a kernel stands on: the threads of a block, barriers, shuffles, launches. By nvcc for GPUs; or, with
// RESCALED_TWIN, by a C++ compiler for the CPU (twin.h), from the same kernel source.
#pragma once
#include <cstdint>

#if defined(RESCALED_TWIN)
#include "twin.h"
#define RESCALED_UNROLL
#define RESCALED_ROLLED
#else
#include <cuda_runtime.h>

#define RESCALED_UNROLL _Pragma("unroll")
#define RESCALED_ROLLED _Pragma("unroll 1")
#define RESCALED_DEVICE static __device__ __forceinline__
#define RESCALED_MEMBER __device__ __forceinline__
#define RESCALED_SHARED(name) extern __shared__ __align__(16) unsigned char name[]

namespace rescaled {

RESCALED_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
RESCALED_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
RESCALED_DEVICE int block_threads() { return static_cast<int>(blockDim.x); }
RESCALED_DEVICE unsigned shared_address(const void* p) { return static_cast<unsigned>(__cvta_generic_to_shared(p)); }
RESCALED_DEVICE void block_barrier() { __syncthreads(); }
// Barrier `id` (1 to 15) of two warpgroups: one arrives and goes on, the other waits for it.
RESCALED_DEVICE void barrier_arrive(int id) { asm volatile("bar.arrive %0, 256;" ::"r"(id) : "memory"); }
RESCALED_DEVICE void barrier_sync(int id) { asm volatile("bar.sync %0, 256;" ::"r"(id) : "memory"); }
RESCALED_DEVICE void warp_barrier() { __syncwarp(); }

template <class T>
RESCALED_DEVICE T shuffle_xor(T value, int lanes) {
  return __shfl_xor_sync(0xffffffffu, value, lanes);
}

// What lane 0 says, known to be the same in all lanes.
RESCALED_DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }
// Whether some lane of the warp says so.
RESCALED_DEVICE bool any_lane(bool says) { return __any_sync(0xffffffffu, says) != 0; }

// The name of the error, or nullptr. More dynamic shared memory than 48 KB must be asked for; that is host-side state
// of the function on this device, cheap and idempotent.
template <class... Parameters, class... Arguments>
const char* launch(void (*kernel)(Parameters...), int64_t blocks, int threads, int64_t shared_bytes, void* stream,
                   const Arguments&... arguments) {
  if (blocks == 0) return nullptr;
  if (blocks > 0x7fffffff) return "cudaErrorInvalidConfiguration";
  cudaError_t status = cudaSuccess;
  if (shared_bytes > 48 * 1024)
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes));
  if (status == cudaSuccess) {
    // clang-format off: it takes the launch for shifts
    kernel<<<static_cast<unsigned>(blocks), threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(arguments...);
    // clang-format on
    status = cudaGetLastError();
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorName(status);
}

// Shared memory that a block of the current device can ask for.
inline int64_t shared_bytes_of_device() {
  int device = 0, bytes = 48 * 1024;
  if (cudaGetDevice(&device) == cudaSuccess)
    cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
  return bytes;
}

// Whether it has Hopper's instructions, for which there must be a target of its own ("90a") among the compiled ones.
inline bool device_has_warpgroups() {
#if defined(RESCALED_CUDA_WARPGROUPS)
  int device = 0, major = 0, minor = 0;
  return cudaGetDevice(&device) == cudaSuccess &&
         cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
         cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess && major == 9 &&
         minor == 0;
#else
  return false;
#endif
}

}  // namespace rescaled
#endif
