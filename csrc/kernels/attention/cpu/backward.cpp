// SPDX-License-Identifier: BSD-3-Clause
#include "gradient_bias.h"

namespace rescaled::RESCALED_ISA {

AttentionProgram attention_backward(const AttentionParameters& p) {
  return with_factors(p, [&](auto factor) { return gradient_program<typename decltype(factor)::Type, false>(p); });
}

}  // namespace rescaled::RESCALED_ISA
