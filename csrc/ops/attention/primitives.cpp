// SPDX-License-Identifier: BSD-3-Clause
#include "primitives.h"

namespace rescaled::ops {
namespace {

#define POINT_ARGUMENTS x.query, x.key, x.value, maybe(x.bias), maybe(x.mask), maybe(x.dropout_seed)
#define SAVED_ARGUMENTS saved.output, saved.balance, saved.log_normalizer
#define SETTING_ARGUMENTS settings.dropout_p, settings.is_causal, settings.scale, settings.kind
#define TANGENT_ARGUMENTS maybe(t.query), maybe(t.key), maybe(t.value), maybe(t.bias)
#define COTANGENT_ARGUMENTS maybe(g.output), maybe(g.balance), maybe(g.log_normalizer)

template <size_t kCount, class Tuple>
std::array<Tensor, kCount> to_array(Tuple&& tuple) {
  return std::apply([](auto&&... t) { return std::array<Tensor, kCount>{std::move(t)...}; }, std::move(tuple));
}

}  // namespace

std::vector<c10::SymInt> leading_sizes(const Point& x) {
  return leading_sizes({{x.query, 2}, {x.key, 2}, {x.value, 2}, {x.bias, 2}, {x.mask, 2}, {x.dropout_seed, 0}});
}

Saved attention_forward(const Point& x, const AttentionSettings& settings) {
  static const auto op = handle<ForwardSignature>("torch_rescaled::_attention_forward");
  auto [output, balance, log_normalizer] = op.call(POINT_ARGUMENTS, SETTING_ARGUMENTS);
  return {output, balance, log_normalizer};
}

std::array<Tensor, 4> attention_backward(const Cotangents& g, const Point& x, const Saved& saved,
                                         const AttentionSettings& settings, std::array<bool, 4> need) {
  static const auto op = handle<BackwardSignature>("torch_rescaled::_attention_backward");
  return to_array<4>(op.call(COTANGENT_ARGUMENTS, POINT_ARGUMENTS, SAVED_ARGUMENTS, SETTING_ARGUMENTS, need));
}

std::array<Saved, 2> attention_forward_jvp(const Tangents& t, const Point& x, const AttentionSettings& settings) {
  static const auto op = handle<ForwardJvpSignature>("torch_rescaled::_attention_forward_jvp");
  auto [output, balance, log_normalizer, tangent_output, tangent_balance, tangent_log_normalizer] =
      op.call(TANGENT_ARGUMENTS, POINT_ARGUMENTS, SETTING_ARGUMENTS);
  return {Saved{output, balance, log_normalizer}, Saved{tangent_output, tangent_balance, tangent_log_normalizer}};
}

Saved attention_jvp(const Tangents& t, const Point& x, const Saved& saved, const AttentionSettings& settings) {
  static const auto op = handle<JvpSignature>("torch_rescaled::_attention_jvp");
  auto [output, balance, log_normalizer] =
      op.call(TANGENT_ARGUMENTS, POINT_ARGUMENTS, SAVED_ARGUMENTS, SETTING_ARGUMENTS);
  return {output, balance, log_normalizer};
}

std::array<Tensor, 7> attention_double_backward(const Tangents& t, const Cotangents& g, const Point& x,
                                                const Saved& saved, const AttentionSettings& settings,
                                                std::array<bool, 7> need) {
  static const auto op = handle<DoubleBackwardSignature>("torch_rescaled::_attention_double_backward");
  return to_array<7>(
      op.call(TANGENT_ARGUMENTS, COTANGENT_ARGUMENTS, POINT_ARGUMENTS, SAVED_ARGUMENTS, SETTING_ARGUMENTS, need));
}

}  // namespace rescaled::ops
