// SPDX-License-Identifier: BSD-3-Clause
#include "gradient_bias.h"

namespace rescaled::RESCALED_ISA {

AttentionProgram attention_double_backward(const AttentionParameters& p) {
  return p.query.dtype == DType::float64 ? gradient_program<double, true>(p) : gradient_program<float, true>(p);
}

}  // namespace rescaled::RESCALED_ISA
