// SPDX-License-Identifier: BSD-3-Clause
#include "cuda_path.h"

#include <c10/util/Exception.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cstdlib>
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

bool verified(const std::string& capability) {
  std::istringstream list(RESCALED_CUDA_VERIFIED);
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
std::string path(int64_t device) {
  const int index = static_cast<int>(device);
  return cuda_kernels_serve(index) ? "cuda:" + capability(index) : "plain";
}

}  // namespace

bool cuda_kernels_serve(int device) {
  if (!kHasKernels || unverified_allowed()) return kHasKernels;
  // Asked by every call: what the driver said is kept.
  enum : char { unasked, yes, no };
  static std::array<std::atomic<char>, 64> answers{};
  if (device < 0 || device >= static_cast<int>(answers.size())) return verified(capability(device));
  if (answers[device] == unasked) answers[device] = verified(capability(device)) ? yes : no;
  return answers[device] == yes;
}

void warn_of_plain_path(int device) {
  if (kHasKernels) {
    TORCH_WARN_ONCE(
        "torch_rescaled::attention: no recorded run has verified the fused CUDA kernels of this version on a GPU of "
        "compute capability ",
        capability(device),
        "; the plain-tensor path takes their place, which is right but takes O(N M) memory. The environment variable "
        "TORCH_RESCALED_UNVERIFIED_CUDA=1 takes the kernels");
  } else {
    TORCH_WARN_ONCE(
        "torch_rescaled::attention: this library was built without nvcc and has no CUDA kernels; the plain-tensor path "
        "takes their place, which is right but takes O(N M) memory");
  }
}

std::string cuda_sources() { return RESCALED_CUDA_SOURCES; }

std::string cuda_verified_capabilities() {
  const std::string list = RESCALED_CUDA_VERIFIED;
  return list.empty() ? "none" : list;
}

std::string cuda_device_state(int device) {
  const std::string name = capability(device);
  if (!kHasKernels) return name + ", plain-tensor path (built without nvcc)";
  if (verified(name)) return name + ", kernels verified";
  return name + (unverified_allowed() ? ", kernels not verified, taken nevertheless"
                                      : ", kernels not verified: plain-tensor path");
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("_cuda_path", TORCH_FN(rescaled::ops::path));
}
