// SPDX-License-Identifier: BSD-3-Clause
// The checks of the attention operators: one text for every device.
#pragma once
#include "primitives.h"

namespace rescaled::ops {

struct PublicArguments {
  Tensor query, key, value, attn_mask;  // attn_mask may be undefined
  double dropout_p;
  bool is_causal;
  std::optional<double> scale;
  bool enable_gqa;
  std::string_view kind;
};

// What the user passed to `op` ("attention", "attention_with_normalizer").
void check_public(const char* op, const PublicArguments&);

// What `attention_loss` takes beside them. The shapes are those of what the core returned.
struct LossArguments {
  Tensor target, log_row_scale;  // log_row_scale may be undefined
  std::string_view form, reduction;
  bool log;
};
void check_loss(const PublicArguments&, const LossArguments&);
void check_loss_shapes(const LossArguments&, const Saved&);

// What reaches the kernels of a primitive: the contract of library.cpp.
void check_point(const char* op, const Point&, const AttentionSettings&);
void check_backward(const Point&, const Cotangents&, const Saved&, const AttentionSettings&);
void check_forward_jvp(const Point&, const Tangents&, const AttentionSettings&);
void check_jvp(const Point&, const Tangents&, const Saved&, const AttentionSettings&);
void check_double_backward(const Point&, const Tangents&, const Cotangents&, const Saved&, const AttentionSettings&);
void check_dropout_mask(const Tensor& dropout_seed, const c10::SymInt& queries, const c10::SymInt& keys,
                        double dropout_p);

}  // namespace rescaled::ops
