// SPDX-License-Identifier: BSD-3-Clause
// Plain-tensor formulas: on any device, differentiable to any order in every mode, O(N M) memory. They serve what the
// fused family does not close over (forward over forward, third derivatives), and devices whose kernels nothing has
// verified. Whoever takes this path warns of it.
#pragma once
#include "primitives.h"

namespace rescaled::ops {

Saved plain_attention_forward(const Point&, const AttentionSettings&);
// Gradients are undefined where the corresponding input is.
std::array<Tensor, 4> plain_attention_backward(const Cotangents&, const Point&, const AttentionSettings&);
Saved plain_attention_jvp(const Tangents&, const Point&, const AttentionSettings&);
std::array<Tensor, 7> plain_attention_double_backward(const Tangents&, const Cotangents&, const Point&,
                                                      const AttentionSettings&);
Tensor plain_dropout_mask(const Tensor& dropout_seed, int64_t queries, int64_t keys, double dropout_p);

}  // namespace rescaled::ops
