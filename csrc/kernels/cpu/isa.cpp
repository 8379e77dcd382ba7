// SPDX-License-Identifier: BSD-3-Clause
#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace rescaled {
namespace {

Isa cap() {
  const char* variable = std::getenv("RESCALED_CPU_ISA");
  const std::string name = variable ? variable : "";
  if (name.empty() || name == "avx512") return Isa::avx512;
  if (name == "avx2") return Isa::avx2;
  if (name == "baseline") return Isa::baseline;
  throw std::invalid_argument(
      "torch_rescaled: expected the environment variable RESCALED_CPU_ISA to be baseline, avx2 or avx512, got " + name);
}

}  // namespace

Isa cpu_isa() {
  static const Isa isa = [] {
    [[maybe_unused]] const Isa highest = cap();
#if defined(__x86_64__)
    if (highest >= Isa::avx512 && __builtin_cpu_supports("x86-64-v4")) return Isa::avx512;
    if (highest >= Isa::avx2 && __builtin_cpu_supports("x86-64-v3")) return Isa::avx2;
#endif
    return Isa::baseline;
  }();
  return isa;
}

const char* cpu_isa_name() {
  switch (cpu_isa()) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "baseline";
  }
}

}  // namespace rescaled
