// SPDX-License-Identifier: BSD-3-Clause
// RESCALED_CPU_ISA caps the instruction set, and never raises it above the processor's.
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../../csrc/kernels/cpu/isa.h"

int main() {
  using rescaled::Isa;
  const char* cap = std::getenv("RESCALED_CPU_ISA");
  Isa best = Isa::baseline;
#if defined(__x86_64__)
  if (__builtin_cpu_supports("x86-64-v3")) best = Isa::avx2;
  if (__builtin_cpu_supports("x86-64-v4")) best = Isa::avx512;
#endif
  Isa expected = best;
  if (cap && std::strcmp(cap, "baseline") == 0) expected = Isa::baseline;
  if (cap && std::strcmp(cap, "avx2") == 0 && best > Isa::avx2) expected = Isa::avx2;
  const Isa got = rescaled::cpu_isa();
  const char* const names[] = {"baseline", "avx2", "avx512"};
  if (got != expected || std::strcmp(rescaled::cpu_isa_name(), names[static_cast<int>(expected)]) != 0) {
    std::printf("FAILED: capped at %s: got %s, expected %s\n", cap ? cap : "nothing", rescaled::cpu_isa_name(),
                names[static_cast<int>(expected)]);
    return 1;
  }
  std::printf("ok: capped at %s, isa %s\n", cap ? cap : "nothing", rescaled::cpu_isa_name());
}
