// SPDX-License-Identifier: BSD-3-Clause
#include "gradient_bias.h"

namespace rescaled::RESCALED_ISA {

AttentionProgram attention_backward(const AttentionParameters& p) {
  return p.query.dtype == DType::float64 ? gradient_program<double, false>(p) : gradient_program<float, false>(p);
}

}  // namespace rescaled::RESCALED_ISA
