// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace rescaled {

enum class Isa { baseline, avx2, avx512 };

// The best instruction set of this processor, capped by the environment variable RESCALED_CPU_ISA: baseline, avx2 or
// avx512; unset or empty caps nothing. Throws std::invalid_argument for anything else.
Isa cpu_isa();
const char* cpu_isa_name();

}  // namespace rescaled
