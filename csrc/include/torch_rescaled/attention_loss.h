// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string>
#include <string_view>

namespace torch_rescaled {

/// What the attention loss takes beside query, key, value and target.
struct AttentionLossOptions {
  /// As in AttentionOptions.
  std::optional<at::Tensor> attn_mask = std::nullopt;
  bool is_causal = false;
  std::optional<double> scale = std::nullopt;
  bool enable_gqa = false;
  std::string kind = "exp";
  /// "rescaled": 1/2 |u V - sum(u) target|^2; "normalized": 1/2 |u V / sum(u) - target|^2, u the weights of a row.
  std::string form = "rescaled";
  /// [*, H, N] or what broadcasts to it: the logarithm of a factor of each row's residual, against overflow.
  std::optional<at::Tensor> log_row_scale = std::nullopt;
  /// "none" (a loss for each row, [*, H, N]), "sum" or "mean".
  std::string reduction = "sum";
};

/// Half the squared distance of attention from a target, in the rescaled or the normalized form.
///
///     Tensor loss = torch_rescaled::attention_loss(query, key, value, target, {.form = "normalized"});
///
/// query [*, H, N, D], key [*, Hk, M, D], value [*, Hk, M, Dv], target [*, H, N, Dv]. Throws c10::Error for arguments
/// that do not fit, and where libtorch_rescaled.so is neither linked nor loaded.
inline at::Tensor attention_loss(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& target, const AttentionLossOptions& options = {}) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const std::optional<at::Tensor>&, bool, std::optional<double>, bool, std::string_view,
                               std::string_view, const std::optional<at::Tensor>&, std::string_view);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("torch_rescaled::attention_loss", "").typed<Signature>();
  return op.call(query, key, value, target, options.attn_mask, options.is_causal, options.scale, options.enable_gqa,
                 options.kind, options.form, options.log_row_scale, options.reduction);
}

}  // namespace torch_rescaled
