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
  const bool dots = best == Isa::avx512 && __builtin_cpu_supports("avx512bf16");
  if (dots && ((cap && *cap) || !__builtin_cpu_is("intel"))) best = Isa::avx512_bf16;
  if (dots && __builtin_cpu_supports("amx-bf16")) best = Isa::amx_bf16;  // and Linux grants the tiles
#endif
  const char* const names[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16"};
  Isa expected = best;
  for (int i = 0; i < static_cast<int>(best); ++i)
    if (cap && std::strcmp(cap, names[i]) == 0) expected = static_cast<Isa>(i);
  const Isa got = rescaled::cpu_isa();
  if (got != expected || std::strcmp(rescaled::cpu_isa_name(), names[static_cast<int>(expected)]) != 0) {
    std::printf("FAILED: capped at %s: got %s, expected %s\n", cap ? cap : "nothing", rescaled::cpu_isa_name(),
                names[static_cast<int>(expected)]);
    return 1;
  }
  std::printf("ok: capped at %s, isa %s\n", cap ? cap : "nothing", rescaled::cpu_isa_name());
}
