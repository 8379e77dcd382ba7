// SPDX-License-Identifier: BSD-3-Clause
// Which path CUDA tensors take: a family's kernels where a recorded run on such a GPU names their very sources
// (tests/gpu_verified.json, known at build time), else the plain-tensor formulas.
#pragma once
#include <string>

namespace rescaled::ops {

// Kernels that are verified together. Hashes and records know a family by its name (cmake/cuda_sources.cmake).
enum class CudaFamily { attention, regression, regression_csr, matrix_regression };
inline constexpr CudaFamily kCudaFamilies[] = {CudaFamily::attention, CudaFamily::regression,
                                               CudaFamily::regression_csr, CudaFamily::matrix_regression};
const char* cuda_family_name(CudaFamily);

// What the environment variable TORCH_RESCALED_UNVERIFIED_CUDA=1 overrules: no record, never the lack of kernels.
bool cuda_kernels_serve(CudaFamily, int device);

// Once a family: that `device` takes the plain-tensor path, what that means, and why.
void warn_of_plain_path(CudaFamily, int device);

std::string cuda_sources(CudaFamily);                   // hash of the kernels' sources
std::string cuda_verified_capabilities(CudaFamily);     // "9.0 8.0", or "none"
std::string cuda_device_state(CudaFamily, int device);  // "9.0, kernels verified", or why not

}  // namespace rescaled::ops
