// SPDX-License-Identifier: BSD-3-Clause
// Which path CUDA tensors take: the fused kernels where a recorded run on such a GPU names these very sources
// (tests/gpu_verified.json, known at build time), else the plain-tensor formulas.
#pragma once
#include <string>

namespace rescaled::ops {

// What the environment variable TORCH_RESCALED_UNVERIFIED_CUDA=1 overrules: no record, never the lack of kernels.
bool cuda_kernels_serve(int device);

// Once: that `device` takes the plain-tensor path, what that means, and why.
void warn_of_plain_path(int device);

std::string cuda_sources();                 // hash of the kernels' sources
std::string cuda_verified_capabilities();   // "9.0 8.0", or "none"
std::string cuda_device_state(int device);  // "9.0, kernels verified", or why not

}  // namespace rescaled::ops
