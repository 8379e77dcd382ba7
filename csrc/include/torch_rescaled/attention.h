// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>
#include <string>
#include <string_view>
#include <tuple>

namespace torch_rescaled {

/// What attention takes beside query, key and value.
struct AttentionOptions {
  /// Broadcasts to [*, H, N, M]. Boolean: true attends. Floating (query's dtype, or float32 with half precision): the
  /// logarithm of the key's weight, so that -inf masks for every kind. A row without keys gives 0.
  std::optional<at::Tensor> attn_mask = std::nullopt;
  /// Probability in [0, 1) of dropping a weight.
  double dropout_p = 0.0;
  /// A query attends to the keys up to its own position, counted from the top left; combines with attn_mask.
  bool is_causal = false;
  /// Factor of the scores; 1 / sqrt(D) where there is none.
  std::optional<double> scale = std::nullopt;
  /// Grouped queries: H / Hk consecutive query heads share a key head.
  bool enable_gqa = false;
  /// "exp", "cosh", "signed" or "sinh".
  std::string kind = "exp";
};

namespace detail {

template <class Result>
using AttentionSignature = Result(const at::Tensor&, const at::Tensor&, const at::Tensor&,
                                  const std::optional<at::Tensor>&, double, bool, std::optional<double>, bool,
                                  std::string_view);

template <class Result>
Result call(const c10::TypedOperatorHandle<AttentionSignature<Result>>& op, const at::Tensor& query,
            const at::Tensor& key, const at::Tensor& value, const AttentionOptions& options) {
  return op.call(query, key, value, options.attn_mask, options.dropout_p, options.is_causal, options.scale,
                 options.enable_gqa, options.kind);
}

}  // namespace detail

/// Normalized attention U V / (U 1), U = exp(mask) phi(scale query key^T), with phi named by `kind`: `exp` is softmax
/// attention, `cosh` the same over keys [K; -K] and values [V; V], `signed` over keys [K; -K] and values [V; -V],
/// `sinh` is sinh / sum of sinh, with a pole where that sum vanishes.
///
///     Tensor output = torch_rescaled::attention(query, key, value, {.is_causal = true, .kind = "signed"});
///
/// query [*, H, N, D], key [*, Hk, M, D], value [*, Hk, M, Dv]: float32, float64, bfloat16 or float16, of one dtype,
/// any strides, at least 2 dimensions; leading dimensions broadcast. Returns [*, H, N, Dv] in that dtype.
///
/// Differentiable in query, key, value and a floating attn_mask: reverse, forward, reverse over reverse and the mixed
/// second derivatives in O(N D) memory. Throws c10::Error for arguments that do not fit, and where
/// libtorch_rescaled.so is neither linked nor loaded ("Could not find schema for torch_rescaled::attention").
inline at::Tensor attention(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value,
                            const AttentionOptions& options = {}) {
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_rescaled::attention", "")
                             .typed<detail::AttentionSignature<at::Tensor>>();
  return detail::call<at::Tensor>(op, query, key, value, options);
}

/// With u the signed weights of a row and c = e^mask exp(s) (exp) or e^mask cosh(s) (the other kinds), s the scores:
struct AttentionWithNormalizer {
  at::Tensor output;          ///< u V / sum(c), [*, H, N, Dv] in query's dtype
  at::Tensor balance;         ///< sum(u) / sum(c), [*, H, N]: 1 for exp and cosh, in [-1, 1] for signed and sinh
  at::Tensor log_normalizer;  ///< log(sum(c)), [*, H, N]; -inf for a row without keys
};

/// Attention with its normalizer, which is always positive; `signed` and `sinh` are the same here. balance and
/// log_normalizer are float32 (float64 for float64). All three are differentiable, as `attention` is.
///
///     const auto [output, balance, log_normalizer] = torch_rescaled::attention_with_normalizer(query, key, value);
inline AttentionWithNormalizer attention_with_normalizer(const at::Tensor& query, const at::Tensor& key,
                                                         const at::Tensor& value,
                                                         const AttentionOptions& options = {}) {
  using Outputs = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  static const auto op = c10::Dispatcher::singleton()
                             .findSchemaOrThrow("torch_rescaled::attention_with_normalizer", "")
                             .typed<detail::AttentionSignature<Outputs>>();
  auto [output, balance, log_normalizer] = detail::call<Outputs>(op, query, key, value, options);
  return {output, balance, log_normalizer};
}

}  // namespace torch_rescaled
