// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace rescaled {

// The last two add products of bfloat16 to avx512, and serve that type alone.
enum class Isa { baseline, avx2, avx512, avx512_bf16, amx_bf16 };

// The best instruction set of this processor, capped by the environment variable RESCALED_CPU_ISA: baseline, avx2,
// avx512, avx512_bf16 or amx_bf16; unset or empty caps nothing. Throws std::invalid_argument for anything else.
Isa cpu_isa();
const char* cpu_isa_name();

// The same for all other types, and for kernels that have no products of bfloat16: avx512 at most.
Isa cpu_vector_isa();

// Whether a gather of AVX-512 takes less time than its loads one by one: of the processors with these instructions on
// those with AMX (measured on a Sapphire Rapids; on no other).
bool cpu_gathers_pay();

}  // namespace rescaled
