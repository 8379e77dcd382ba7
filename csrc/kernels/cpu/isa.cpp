// SPDX-License-Identifier: BSD-3-Clause
#include "isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>
#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace rescaled {
namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16", "amx_bf16"};

bool is_capped() {
  const char* variable = std::getenv("RESCALED_CPU_ISA");
  return variable && *variable;
}
Isa cap() {
  if (!is_capped()) return Isa::amx_bf16;
  const std::string name = std::getenv("RESCALED_CPU_ISA");
  for (int i = 0; i <= static_cast<int>(Isa::amx_bf16); ++i)
    if (name == kNames[i]) return static_cast<Isa>(i);
  throw std::invalid_argument(
      "torch_rescaled: expected the environment variable RESCALED_CPU_ISA to be baseline, avx2, avx512, avx512_bf16 or "
      "amx_bf16, got " +
      name);
}

#if defined(__x86_64__)
// Tiles are 8 KB of registers that a process has to ask Linux for, once.
bool has_tiles() {
#if defined(__linux__) && defined(SYS_arch_prctl)
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16") &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// VDPBF16PS has half the rate of float32 multiply-adds on Intel's cores (Sapphire Rapids, measured), twice on AMD's: on
// the former only by request.
bool has_dots(bool by_request) {
  return __builtin_cpu_supports("avx512bf16") && (by_request || !__builtin_cpu_is("intel"));
}
#endif

}  // namespace

Isa cpu_isa() {
  static const Isa isa = [] {
    [[maybe_unused]] const Isa highest = cap();
#if defined(__x86_64__)
    if (highest >= Isa::avx512 && __builtin_cpu_supports("x86-64-v4")) {
      if (highest >= Isa::amx_bf16 && __builtin_cpu_supports("avx512bf16") && has_tiles()) return Isa::amx_bf16;
      if (highest >= Isa::avx512_bf16 && has_dots(is_capped())) return Isa::avx512_bf16;
      return Isa::avx512;
    }
    if (highest >= Isa::avx2 && __builtin_cpu_supports("x86-64-v3")) return Isa::avx2;
#endif
    return Isa::baseline;
  }();
  return isa;
}

Isa cpu_vector_isa() { return cpu_isa() > Isa::avx512 ? Isa::avx512 : cpu_isa(); }

bool cpu_gathers_pay() { return cpu_isa() == Isa::amx_bf16; }

const char* cpu_isa_name() { return kNames[static_cast<int>(cpu_isa())]; }

}  // namespace rescaled
