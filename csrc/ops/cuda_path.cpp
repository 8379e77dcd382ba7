// SPDX-License-Identifier: BSD-3-Clause
#include "cuda_path.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <sstream>
#include <string_view>

#if defined(RESCALED_CUDA)
#include "../kernels/cuda/capability.h"
#endif

namespace rescaled::ops {
namespace {

#if defined(RESCALED_CUDA) || defined(RESCALED_TWIN)
constexpr bool kHasKernels = true;
#else
constexpr bool kHasKernels = false;
#endif

struct Family {
  const char *name, *sources, *verified, *cost;  // cost: of its plain-tensor path
};
const Family& facts(CudaFamily family) {
  static constexpr Family families[] = {
      {"attention", RESCALED_CUDA_SOURCES_attention, RESCALED_CUDA_VERIFIED_attention, "takes O(N M) memory"},
      {"regression", RESCALED_CUDA_SOURCES_regression, RESCALED_CUDA_VERIFIED_regression, "reads A several times"},
      {"regression_csr", RESCALED_CUDA_SOURCES_regression_csr, RESCALED_CUDA_VERIFIED_regression_csr,
       "takes memory of the size of A's values, and adds up in no fixed order unless torch is told to"},
      {"matrix_regression", RESCALED_CUDA_SOURCES_matrix_regression, RESCALED_CUDA_VERIFIED_matrix_regression,
       "forms arrays of the map's size"}};
  return families[static_cast<int>(family)];
}
CudaFamily family_of(c10::string_view name) {
  for (const CudaFamily family : kCudaFamilies)
    if (name == facts(family).name) return family;
  TORCH_CHECK_VALUE(false,
                    "torch_rescaled::_cuda_path: expected family attention, regression, regression_csr or "
                    "matrix_regression, got ",
                    name);
}

// "9.0"; "unknown (...)" where the driver does not answer. The twin's kernels run on no GPU at all.
std::string capability(int device) {
#if defined(RESCALED_CUDA)
  const char* error = nullptr;
  const int number = cuda_capability(device, &error);
  if (error != nullptr) return std::string("unknown (") + error + ")";
  return std::to_string(number / 10) + "." + std::to_string(number % 10);
#else
  static_cast<void>(device);
  return "unknown";
#endif
}

bool verified(CudaFamily family, const std::string& capability) {
  std::istringstream list(facts(family).verified);
  for (std::string one; list >> one;)
    if (one == capability) return true;
  return false;
}

bool unverified_allowed() {
  static const bool allowed = [] {
    const char* value = std::getenv("TORCH_RESCALED_UNVERIFIED_CUDA");
    return value != nullptr && std::string_view(value) == "1";
  }();
  return allowed;
}

// "cuda:9.0" for the kernels, "plain" for the other path; for torch_rescaled.backend.
std::string path(int64_t device, c10::string_view family) {
  const int index = static_cast<int>(device);
  return cuda_kernels_serve(family_of(family), index) ? "cuda:" + capability(index) : "plain";
}

}  // namespace

const char* cuda_family_name(CudaFamily family) { return facts(family).name; }

bool cuda_kernels_serve(CudaFamily family, int device) {
  if (!kHasKernels || unverified_allowed()) return kHasKernels;
  // Asked by every call: what the driver said is kept.
  enum : char { unasked, yes, no };
  static std::array<std::array<std::atomic<char>, 64>, std::size(kCudaFamilies)> all{};
  auto& answers = all[static_cast<size_t>(family)];
  if (device < 0 || device >= static_cast<int>(answers.size())) return verified(family, capability(device));
  if (answers[device] == unasked) answers[device] = verified(family, capability(device)) ? yes : no;
  return answers[device] == yes;
}

void warn_of_plain_path(CudaFamily family, int device) {
  static std::array<std::atomic<bool>, std::size(kCudaFamilies)> told{};
  if (told[static_cast<size_t>(family)].exchange(true)) return;
  const Family& of = facts(family);
  if (kHasKernels) {
    TORCH_WARN("torch_rescaled::", of.name,
               ": no recorded run has verified the fused CUDA kernels of this version on a GPU of compute capability ",
               capability(device), "; the plain-tensor path takes their place, which is right but ", of.cost,
               ". The environment variable TORCH_RESCALED_UNVERIFIED_CUDA=1 takes the kernels");
  } else {
    TORCH_WARN("torch_rescaled::", of.name,
               ": this library was built without nvcc and has no CUDA kernels; the plain-tensor path takes their "
               "place, which is right but ",
               of.cost);
  }
}

std::string cuda_sources(CudaFamily family) { return facts(family).sources; }

std::string cuda_verified_capabilities(CudaFamily family) {
  const std::string list = facts(family).verified;
  return list.empty() ? "none" : list;
}

std::string cuda_device_state(CudaFamily family, int device) {
  const std::string name = capability(device);
  if (!kHasKernels) return name + ", plain-tensor path (built without nvcc)";
  if (verified(family, name)) return name + ", kernels verified";
  return name + (unverified_allowed() ? ", kernels not verified, taken nevertheless"
                                      : ", kernels not verified: plain-tensor path");
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("_cuda_path", TORCH_FN(rescaled::ops::path));
}
