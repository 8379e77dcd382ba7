// SPDX-License-Identifier: BSD-3-Clause
// Plain-tensor formulas: differentiable to any order in every mode, O(N M) memory. They serve what the fused family
// does not close over: forward over forward, and third derivatives. A warning, once, says so.
#pragma once
#include "primitives.h"

namespace rescaled::ops {

Saved plain_attention_jvp(const Tangents&, const Point&, const AttentionSettings&);
// Undefined where the corresponding input is.
std::array<Tensor, 7> plain_attention_double_backward(const Tangents&, const Cotangents&, const Point&,
                                                      const AttentionSettings&);

}  // namespace rescaled::ops
