// SPDX-License-Identifier: BSD-3-Clause
#include <cuda_runtime.h>

#include "probe.h"

namespace rescaled {
namespace {

__global__ void probe(int* architecture) {
#if defined(__CUDA_ARCH__)
  *architecture = __CUDA_ARCH__;
#else
  *architecture = 0;
#endif
}

}  // namespace

const char* cuda_architectures() { return RESCALED_CUDA_ARCHITECTURES; }

int cuda_device_count(const char** error) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  *error = status == cudaSuccess ? nullptr : cudaGetErrorName(status);
  return status == cudaSuccess ? count : 0;
}

const char* cuda_probe(int* architecture) {
  int* device = nullptr;
  cudaError_t status = cudaMalloc(&device, sizeof(int));
  if (status == cudaSuccess) {
    probe<<<1, 1>>>(device);
    status = cudaGetLastError();
    if (status == cudaSuccess) status = cudaMemcpy(architecture, device, sizeof(int), cudaMemcpyDeviceToHost);
    cudaFree(device);
  }
  return status == cudaSuccess ? nullptr : cudaGetErrorName(status);
}

}  // namespace rescaled
