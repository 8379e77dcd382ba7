// SPDX-License-Identifier: BSD-3-Clause
#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace rescaled {

Isa cpu_isa() {
  static const Isa isa = [] {
#if defined(__x86_64__)
    const char* cap = std::getenv("RESCALED_CPU_ISA");
    const bool v3 = !cap || std::strcmp(cap, "baseline") != 0;
    const bool v4 = v3 && (!cap || std::strcmp(cap, "avx2") != 0);
    if (v4 && __builtin_cpu_supports("x86-64-v4")) return Isa::avx512;
    if (v3 && __builtin_cpu_supports("x86-64-v3")) return Isa::avx2;
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
