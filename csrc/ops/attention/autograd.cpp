// SPDX-License-Identifier: BSD-3-Clause
// Autograd of the attention family (../family.h). W, balance and log_normalizer are what the forward saves.
#include <ATen/ops/alias.h>

#include "../family.h"
#include "plain.h"
#include "primitives.h"
#include "public.h"

namespace rescaled::ops {
namespace {

void warn_of_plain_derivative() {
  TORCH_WARN_ONCE(
      "torch_rescaled::attention: this derivative (forward over forward, or third order) takes the plain-tensor path, "
      "whose memory is O(N M); reverse over reverse, reverse over forward and forward over reverse are fused and take "
      "O(N D)");
}

// query, key, value, bias | mask, dropout_seed
struct Attention {
  using Settings = AttentionSettings;
  static constexpr size_t kPoint = 4, kExtra = 2, kOutputs = 3, kSaved = 3;
  static constexpr std::array<const char*, 4> names = {"RescaledAttentionBackward", "RescaledAttentionDoubleBackward",
                                                       "RescaledAttentionJvpBackward",
                                                       "RescaledAttentionThirdBackward"};

  static variable_list backward(const Settings& settings, const variable_list& grads, const variable_list& point,
                                const variable_list& extra, const variable_list& saved, const std::vector<bool>& need) {
    const auto d = attention_backward(cotangents(grads), of(point, extra), statistics(saved), settings, flags<4>(need));
    return {d.begin(), d.end()};
  }
  static variable_list jvp(const Settings& settings, const variable_list& along, const variable_list& point,
                           const variable_list& extra, const variable_list& saved) {
    const Saved t = attention_jvp(tangents(along), of(point, extra), statistics(saved), settings);
    return {t.output, t.balance, t.log_normalizer};
  }
  static variable_list double_backward(const Settings& settings, const variable_list& along, const variable_list& grads,
                                       const variable_list& point, const variable_list& extra,
                                       const variable_list& saved, const std::vector<bool>& need) {
    const auto d = attention_double_backward(tangents(along), cotangents(grads), of(point, extra), statistics(saved),
                                             settings, flags<7>(need));
    return {d.begin(), d.end()};
  }
  static variable_list plain_double_backward(const Settings& settings, const variable_list& along,
                                             const variable_list& grads, const variable_list& point,
                                             const variable_list& extra, const std::vector<bool>&) {
    warn_of_plain_derivative();
    const auto d = plain_attention_double_backward(tangents(along), cotangents(grads), of(point, extra), settings);
    return {d.begin(), d.end()};
  }

 private:
  static Point of(const variable_list& x, const variable_list& extra) {
    return {x[0], x[1], x[2], x[3], extra[0], extra[1]};
  }
  static Saved statistics(const variable_list& s) { return {s[0], s[1], s[2]}; }
  static Tangents tangents(const variable_list& t) { return {t[0], t[1], t[2], t[3]}; }
  static Cotangents cotangents(const variable_list& g) { return {g[0], g[1], g[2]}; }
};
using Forward = Rules<Attention>::Forward;
using Backward = Rules<Attention>::Backward;
using Jvp = Rules<Attention>::Jvp;
using DoubleBackward = Rules<Attention>::DoubleBackward;

bool any_batched(const variable_list& list) {
  return std::any_of(list.begin(), list.end(), [](const Tensor& t) {
    if (!t.defined()) return false;
    const auto keys = t.key_set();  // Batched: of torch.autograd's own batched gradients
    return keys.has(c10::DispatchKey::FuncTorchBatched) || keys.has(c10::DispatchKey::Batched);
  });
}

// The forward of duals: outputs and tangents in one pass. The node keeps the duals, for forward over reverse.
Three forward_of_duals(const variable_list& in, const variable_list& primals, const variable_list& tangents,
                       const AttentionSettings& settings) {
  const auto [out, moved] =
      attention_forward_jvp({tangents[0], tangents[1], tangents[2], tangents[3]},
                            {primals[0], primals[1], primals[2], primals[3], primals[4], primals[5]}, settings);
  const auto recorded = record<Forward>(
      settings, in,
      [&, &out = out] {
        return variable_list{at::alias(out.output), at::alias(out.balance), at::alias(out.log_normalizer)};
      },
      [&, &moved = moved](const variable_list&, const variable_list&, const variable_list&) {
        return variable_list{moved.output, moved.balance, moved.log_normalizer};
      });
  return {recorded[0], recorded[1], recorded[2]};
}

Three forward_autograd(c10::DispatchKeySet keys, RESCALED_POINT, RESCALED_SETTINGS) {
  const variable_list in{query, key, value, defined_or(bias), defined_or(mask), defined_or(dropout_seed)};
  // A graph traced by torch.compile without tangents calls this op directly. Duals that reach it from outside would
  // leave stale tangents in the code Inductor fused around it (true for ATen's operators too, silently): refuse.
  const bool moves = any_tangent(in, Forward::kInputs);
  TORCH_CHECK_NOT_IMPLEMENTED(
      inside_public_attention() || !moves,
      "torch_rescaled::attention: expected no forward-mode tangents from outside a compiled graph, got a dual tensor; "
      "enter torch.func.jvp or the dual level inside the compiled function");
  if (moves) {  // many directions at one point, as in jacfwd: below, its forward once and the JVP for all of them
    const auto [primals, tangents] = primals_and_tangents(in);
    if (any_batched(primals) || !any_batched(tangents))
      return forward_of_duals(in, primals, tangents, RESCALED_THE_SETTINGS);
  }
  static const auto op = handle<ForwardSignature>("torch_rescaled::_attention_forward");
  const auto out = record<Forward>(RESCALED_THE_SETTINGS, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, query, key, value, bias, mask, dropout_seed,
                                 dropout_p, is_causal, scale, kind));
  });
  return {out[0], out[1], out[2]};
}

// One pass for outputs and tangents, recorded as the two primitives that it replaces.
Six forward_jvp_autograd(c10::DispatchKeySet keys, RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SETTINGS) {
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  const variable_list along{defined_or(tangent_query), defined_or(tangent_key), defined_or(tangent_value),
                            defined_or(tangent_bias)},
      in{query, key, value, defined_or(bias), defined_or(mask), defined_or(dropout_seed)};
  if (any_tangent(along, Attention::kPoint) || any_tangent(in, Attention::kPoint)) {  // forward over forward
    const Saved out = attention_forward(RESCALED_THE_POINT, settings),
                moved = attention_jvp(RESCALED_THE_TANGENTS, RESCALED_THE_POINT, out, settings);
    return {out.output, out.balance, out.log_normalizer, moved.output, moved.balance, moved.log_normalizer};
  }
  static const auto op = handle<ForwardJvpSignature>("torch_rescaled::_attention_forward_jvp");
  variable_list all;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    all = to_list(op.redispatch(keys & c10::after_autograd_keyset, tangent_query, tangent_key, tangent_value,
                                tangent_bias, query, key, value, bias, mask, dropout_seed, dropout_p, is_causal, scale,
                                kind));
  }
  const auto out = record<Forward>(settings, in, [&] { return part(all, 0, Forward::kOutputs); });
  const auto moved =
      record<Jvp>(settings, join(join(along, in), out), [&] { return part(all, Forward::kOutputs, Jvp::kOutputs); });
  return {out[0], out[1], out[2], moved[0], moved[1], moved[2]};
}

Four backward_autograd(c10::DispatchKeySet keys, RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS,
                       std::array<bool, 4> need) {
  const variable_list in{defined_or(grad_output),
                         defined_or(grad_balance),
                         defined_or(grad_log_normalizer),
                         query,
                         key,
                         value,
                         defined_or(bias),
                         defined_or(mask),
                         defined_or(dropout_seed),
                         output,
                         balance,
                         log_normalizer};
  static const auto op = handle<BackwardSignature>("torch_rescaled::_attention_backward");
  const auto out = record<Backward>({RESCALED_THE_SETTINGS, need}, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, grad_output, grad_balance, grad_log_normalizer,
                                 query, key, value, bias, mask, dropout_seed, output, balance, log_normalizer,
                                 dropout_p, is_causal, scale, kind, need));
  });
  return {out[0], out[1], out[2], out[3]};
}

Three jvp_autograd(c10::DispatchKeySet keys, RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS) {
  const variable_list in{defined_or(tangent_query),
                         defined_or(tangent_key),
                         defined_or(tangent_value),
                         defined_or(tangent_bias),
                         query,
                         key,
                         value,
                         defined_or(bias),
                         defined_or(mask),
                         defined_or(dropout_seed),
                         output,
                         balance,
                         log_normalizer};
  if (any_tangent(in, Jvp::kInputs)) {
    warn_of_plain_derivative();
    const Saved t = plain_attention_jvp(RESCALED_THE_TANGENTS, RESCALED_THE_POINT, RESCALED_THE_SETTINGS);
    return {t.output, t.balance, t.log_normalizer};
  }
  static const auto op = handle<JvpSignature>("torch_rescaled::_attention_jvp");
  const auto out = record<Jvp>(RESCALED_THE_SETTINGS, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, tangent_query, tangent_key, tangent_value,
                                 tangent_bias, query, key, value, bias, mask, dropout_seed, output, balance,
                                 log_normalizer, dropout_p, is_causal, scale, kind));
  });
  return {out[0], out[1], out[2]};
}

Seven double_backward_autograd(c10::DispatchKeySet keys, RESCALED_TANGENTS, RESCALED_COTANGENTS, RESCALED_POINT,
                               RESCALED_SAVED, RESCALED_SETTINGS, std::array<bool, 7> need) {
  const variable_list in{defined_or(tangent_query),
                         defined_or(tangent_key),
                         defined_or(tangent_value),
                         defined_or(tangent_bias),
                         defined_or(grad_output),
                         defined_or(grad_balance),
                         defined_or(grad_log_normalizer),
                         query,
                         key,
                         value,
                         defined_or(bias),
                         defined_or(mask),
                         defined_or(dropout_seed),
                         output,
                         balance,
                         log_normalizer};
  variable_list out;
  if (any_tangent(in, DoubleBackward::kInputs)) {
    out = DoubleBackward::plain({RESCALED_THE_SETTINGS, need}, in);
    for (size_t i = 0; i < out.size(); ++i)
      if (!out[i].defined()) out[i] = none(query);
  } else {
    static const auto op = handle<DoubleBackwardSignature>("torch_rescaled::_attention_double_backward");
    out = record<DoubleBackward>({RESCALED_THE_SETTINGS, need}, in, [&] {
      return to_list(op.redispatch(keys & c10::after_autograd_keyset, tangent_query, tangent_key, tangent_value,
                                   tangent_bias, grad_output, grad_balance, grad_log_normalizer, query, key, value,
                                   bias, mask, dropout_seed, output, balance, log_normalizer, dropout_p, is_causal,
                                   scale, kind, need));
    });
  }
  return {out[0], out[1], out[2], out[3], out[4], out[5], out[6]};
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, Autograd, m) {
  m.impl("_attention_forward", TORCH_FN(rescaled::ops::forward_autograd));
  m.impl("_attention_backward", TORCH_FN(rescaled::ops::backward_autograd));
  m.impl("_attention_forward_jvp", TORCH_FN(rescaled::ops::forward_jvp_autograd));
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp_autograd));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward_autograd));
}
