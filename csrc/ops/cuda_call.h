// SPDX-License-Identifier: BSD-3-Clause
// What bindings of CUDA kernels share. Only the device-generic part of torch is used: it compiles with a CPU build too.
//
// With RESCALED_TWIN the same kernels, compiled for the host, stand at the CPU key: a library for tests alone.
#pragma once
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include "cuda_path.h"

#if defined(RESCALED_TWIN)
#define RESCALED_CUDA_KEY CPU
#else
#define RESCALED_CUDA_KEY CUDA
#endif

namespace rescaled::ops {

// A cudaStream_t: the current one.
inline void* cuda_stream(const c10::Device& device) {
#if defined(RESCALED_TWIN)
  static_cast<void>(device);
  return nullptr;
#else
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
#endif
}

inline void check_cuda(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, "torch_rescaled::", op, ": CUDA error ", error);
}

// Whether the kernels serve; where they do not, the plain path is told.
inline bool cuda_serves(CudaFamily family, const c10::Device& device) {
  const bool serve = cuda_kernels_serve(family, device.index());
  if (!serve) warn_of_plain_path(family, device.index());
  return serve;
}

}  // namespace rescaled::ops
