// SPDX-License-Identifier: BSD-3-Clause
#include <torch/library.h>
#include <torch/version.h>

#include <sstream>

#include "../kernels/cpu/isa.h"
#if defined(RESCALED_CUDA)
#include "../kernels/cuda/probe.h"
#endif

namespace {

// One "name: value" line per fact; `python -m torch_rescaled` prints them.
std::string build_info() {
  std::ostringstream lines;
  lines << "torch: " << TORCH_VERSION << "\ncompiler: " << __VERSION__ << "\ncpu_isa: " << rescaled::cpu_isa_name();
#if defined(RESCALED_CUDA)
  lines << "\ncuda_architectures: " << rescaled::cuda_architectures();
#else
  lines << "\ncuda_architectures: none";
#endif
  return lines.str();
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) { m.impl("build_info", TORCH_FN(build_info)); }
