// SPDX-License-Identifier: BSD-3-Clause
#include <torch/library.h>
#include <torch/version.h>

#include <sstream>
#include <string>

#include "../kernels/cpu/isa.h"
#if defined(RESCALED_CUDA)
#include "../kernels/cuda/probe.h"
#endif
#include "cuda_path.h"

namespace {

using rescaled::ops::CudaFamily, rescaled::ops::kCudaFamilies;

// Of a fact's name: attention's has none.
std::string suffix(CudaFamily family) {
  return family == CudaFamily::attention ? "" : std::string("_") + rescaled::ops::cuda_family_name(family);
}

// One "name: value" line per fact; `python -m torch_rescaled` prints them. `devices` asks the CUDA driver too, which
// makes a context on the current device: only on request.
std::string build_info(bool devices) {
  std::ostringstream lines;
  lines << "torch: " << TORCH_VERSION << "\ncompiler: " << __VERSION__ << "\ncpu_isa: " << rescaled::cpu_isa_name();
  for (const CudaFamily family : kCudaFamilies) {
    lines << "\ncuda_sources" << suffix(family) << ": " << rescaled::ops::cuda_sources(family);
    lines << "\ncuda_verified" << suffix(family) << ": " << rescaled::ops::cuda_verified_capabilities(family);
  }
#if defined(RESCALED_CUDA)
  lines << "\ncuda_architectures: " << rescaled::cuda_architectures();
  if (devices) {
    const char* error = nullptr;
    const int count = rescaled::cuda_device_count(&error);
    lines << "\ncuda_devices: " << count;
    if (error != nullptr) lines << " (" << error << ')';
    for (const CudaFamily family : kCudaFamilies)
      for (int i = 0; i < count; ++i)
        lines << "\ncuda_device_" << i << suffix(family) << ": " << rescaled::ops::cuda_device_state(family, i);
    if (count > 0) {
      int architecture = 0;
      const char* failure = rescaled::cuda_probe(&architecture);
      lines << "\ncuda_probe: " << (failure == nullptr ? std::to_string(architecture) : failure);
    }
  }
#else
  lines << "\ncuda_architectures: none";
  if (devices) lines << "\ncuda_devices: 0 (built without nvcc)";
#endif
  return lines.str();
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_FN(build_info)); }
