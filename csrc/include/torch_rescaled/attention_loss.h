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
  /// "rescaled": 1/2 |u V - sum(d) target|^2 for a row with weights u; "normalized": 1/2 |u V / sum(d) - target|^2.
  /// d is u; for `signed` it is the cosh weights, whose sum has no zero.
  std::string form = "rescaled";
  /// Broadcasts to [*, H, N]; query's dtype, or float32 with half precision: the logarithm of what a row's residual is
  /// divided by, against overflow. Rescaled form only.
  std::optional<at::Tensor> log_row_scale = std::nullopt;
  /// "none" (a loss for each row, [*, H, N]), "sum", or "mean" over the rows.
  std::string reduction = "sum";
  /// The logarithm of what the reduction gives: finite where the rescaled loss is too large for its dtype.
  bool log = false;
};

/// Half the squared distance of attention from a target, in the rescaled or the normalized form.
///
///     Tensor loss = torch_rescaled::attention_loss(query, key, value, target, {.form = "normalized"});
///
/// query [*, H, N, D], key [*, Hk, M, D], value [*, Hk, M, Dv], target [*, H, N, Dv] or what broadcasts to it. Returns
/// float32 (float64 for float64). Differentiable in all tensors but a boolean mask, to second order, as `attention` is.
/// Throws c10::Error for arguments that do not fit, and where libtorch_rescaled.so is neither linked nor loaded.
inline at::Tensor attention_loss(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                                 const at::Tensor& target, const AttentionLossOptions& options = {}) {
  using Signature = at::Tensor(const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
                               const std::optional<at::Tensor>&, bool, std::optional<double>, bool, std::string_view,
                               std::string_view, const std::optional<at::Tensor>&, std::string_view, bool);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("torch_rescaled::attention_loss", "").typed<Signature>();
  return op.call(query, key, value, target, options.attn_mask, options.is_causal, options.scale, options.enable_gqa,
                 options.kind, options.form, options.log_row_scale, options.reduction, options.log);
}

}  // namespace torch_rescaled
