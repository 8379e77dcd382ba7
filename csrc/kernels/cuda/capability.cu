// SPDX-License-Identifier: BSD-3-Clause
#include <cuda_runtime.h>

#include "capability.h"

namespace rescaled {

int cuda_capability(int device, const char** error) {
  int major = 0, minor = 0;
  cudaError_t status = cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device);
  if (status == cudaSuccess) status = cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device);
  *error = status == cudaSuccess ? nullptr : cudaGetErrorName(status);
  return status == cudaSuccess ? 10 * major + minor : 0;
}

}  // namespace rescaled
