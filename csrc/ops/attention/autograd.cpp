// SPDX-License-Identifier: BSD-3-Clause
// The rules of the attention family: closed under second order, because <G, F> has a symmetric Hessian.
//
// clang-format off
//                    reverse rule                            forward rule
//   forward          backward                                jvp
//   backward         double backward                         backward (of the cotangents' tangents) + double backward's
//                                                            gradients
//   jvp              backward, double backward's gradients   plain-tensor formula
//   double backward  plain-tensor formula                    plain-tensor formula
// clang-format on
//
// W, balance and log_normalizer that the last three take along are auxiliaries: they carry no gradient and no tangent;
// each rule is the total derivative.
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "../node.h"
#include "plain.h"
#include "primitives.h"
#include "public.h"

namespace rescaled::ops {
namespace {

// Inputs travel through the recorder as one list; these read the groups back.
Point point_at(const variable_list& in, size_t i, size_t auxiliary) {
  return {in[i], in[i + 1], in[i + 2], in[i + 3], in[auxiliary], in[auxiliary + 1]};
}
Saved saved_at(const variable_list& in, size_t i) { return {in[i], in[i + 1], in[i + 2]}; }
Tangents tangents_at(const variable_list& in, size_t i) { return {in[i], in[i + 1], in[i + 2], in[i + 3]}; }
Cotangents cotangents_at(const variable_list& in, size_t i) { return {in[i], in[i + 1], in[i + 2]}; }
template <size_t kCount>
std::array<bool, kCount> flags(const std::vector<bool>& need, size_t first = 0) {
  std::array<bool, kCount> out{};
  for (size_t i = 0; i < kCount; ++i) out[i] = need[first + i];
  return out;
}
bool any_defined(const variable_list& list, size_t first, size_t count) {
  for (size_t i = first; i < first + count; ++i)
    if (list[i].defined()) return true;
  return false;
}
// The gradients of a double backward along `t`, for the inputs `need` names; undefined where not asked for.
std::array<Tensor, 4> hessian_product(const Tangents& t, const Cotangents& g, const Point& x, const Saved& saved,
                                      const AttentionSettings& settings, std::array<bool, 4> need) {
  auto all =
      attention_double_backward(t, g, x, saved, settings, {false, false, false, need[0], need[1], need[2], need[3]});
  return {all[3], all[4], all[5], all[6]};
}

void warn_of_plain_derivative() {
  TORCH_WARN_ONCE(
      "torch_rescaled::attention: this derivative (forward over forward, or third order) takes the plain-tensor path, "
      "whose memory is O(N M); reverse over reverse, reverse over forward and forward over reverse are fused and take "
      "O(N D)");
}

// query, key, value, bias | mask, dropout_seed
struct Forward {
  using Settings = AttentionSettings;
  static constexpr size_t kInputs = 4, kOutputs = 3;
  static constexpr size_t kAuxiliaries = 2;
  static constexpr bool kTraceable = true;
  static constexpr bool kSavesOutputs = true;
  static const char* name() { return "RescaledAttentionBackward"; }
  static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list& out,
                           const variable_list& grads, const std::vector<bool>& need) {
    const auto d =
        attention_backward(cotangents_at(grads, 0), point_at(in, 0, 4), saved_at(out, 0), settings, flags<4>(need));
    return {d[0], d[1], d[2], d[3]};
  }
  static variable_list jvp(const Settings& settings, const variable_list& in, const variable_list& tangents,
                           const variable_list& out) {
    const Saved t = attention_jvp(tangents_at(tangents, 0), point_at(in, 0, 4), saved_at(out, 0), settings);
    return {t.output, t.balance, t.log_normalizer};
  }
};

// With the outputs asked for; the others are empty [0] tensors, whose cotangents mean nothing.
template <size_t kOutputs>
struct NeedSettings : AttentionSettings {
  std::array<bool, kOutputs> need{};
  variable_list cotangents(variable_list grads) const {
    for (size_t i = 0; i < kOutputs; ++i)
      if (!need[i]) grads[i] = Tensor();
    return grads;
  }
  template <class Arguments>
  void collect(Arguments& args) const {
    AttentionSettings::collect(args);
    for (const bool flag : need) args.collect(flag);
  }
  template <class Arguments>
  void pack(Arguments& args) const {
    AttentionSettings::pack(args);
    for (const bool flag : need) args.pack(flag);
  }
  template <class Arguments>
  void unpack(Arguments& args) {
    AttentionSettings::unpack(args);
    for (bool& flag : need) flag = args.template unpack<bool>();
  }
};

// grad_output, grad_balance, grad_log_normalizer, query, key, value, bias |
// mask, dropout_seed, W, balance, log_normalizer
struct Backward {
  using Settings = NeedSettings<4>;
  static constexpr size_t kInputs = 7, kOutputs = 4;
  static constexpr size_t kAuxiliaries = 5;
  static constexpr bool kTraceable = true;
  static constexpr bool kSavesOutputs = false;
  static const char* name() { return "RescaledAttentionDoubleBackward"; }
  static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list&,
                           const variable_list& grads, const std::vector<bool>& need) {
    const auto d = attention_double_backward(tangents_at(settings.cotangents(grads), 0), cotangents_at(in, 0),
                                             point_at(in, 3, 7), saved_at(in, 9), settings, flags<7>(need));
    return {d.begin(), d.end()};
  }
  static variable_list jvp(const Settings& settings, const variable_list& in, const variable_list& tangents,
                           const variable_list&) {
    const Point x = point_at(in, 3, 7);
    const Saved saved = saved_at(in, 9);
    variable_list sum(4);
    const auto add = [&](const std::array<Tensor, 4>& terms) {
      for (size_t i = 0; i < 4; ++i)
        if (settings.need[i]) sum[i] = sum[i].defined() ? sum[i] + terms[i] : terms[i];
    };
    if (any_defined(tangents, 0, 3))
      add(attention_backward(cotangents_at(tangents, 0), x, saved, settings, settings.need));
    if (any_defined(tangents, 3, 4))
      add(hessian_product(tangents_at(tangents, 3), cotangents_at(in, 0), x, saved, settings, settings.need));
    return sum;
  }
};

// tangents of query, key, value, bias; query, key, value, bias |
// mask, dropout_seed, W, balance, log_normalizer
struct Jvp {
  using Settings = AttentionSettings;
  static constexpr size_t kInputs = 8, kOutputs = 3;
  static constexpr size_t kAuxiliaries = 5;
  static constexpr bool kTraceable = true;
  static constexpr bool kSavesOutputs = false;
  static const char* name() { return "RescaledAttentionJvpBackward"; }
  static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list&,
                           const variable_list& grads, const std::vector<bool>& need) {
    const Point x = point_at(in, 4, 8);
    const Saved saved = saved_at(in, 10);
    const auto along = flags<4>(need), at = flags<4>(need, 4);
    variable_list result(kInputs);
    const auto put = [&](size_t first, const std::array<Tensor, 4>& d) {
      for (size_t i = 0; i < 4; ++i) result[first + i] = d[i];
    };
    const auto any = [](const std::array<bool, 4>& f) { return f[0] || f[1] || f[2] || f[3]; };
    if (any(along)) put(0, attention_backward(cotangents_at(grads, 0), x, saved, settings, along));
    if (any(at)) put(4, hessian_product(tangents_at(in, 0), cotangents_at(grads, 0), x, saved, settings, at));
    return result;
  }
  // Never with tangents: jvp_autograd takes those to the plain-tensor formula.
  static variable_list jvp(const Settings&, const variable_list&, const variable_list&, const variable_list&) {
    return variable_list(kOutputs);
  }
};

// tangents (4), cotangents (3), query, key, value, bias |
// mask, dropout_seed, W, balance, log_normalizer
struct DoubleBackward {
  using Settings = NeedSettings<7>;
  static constexpr size_t kInputs = 11, kOutputs = 7;
  static constexpr size_t kAuxiliaries = 5;
  static constexpr bool kTraceable = false;
  static constexpr bool kSavesOutputs = false;
  static const char* name() { return "RescaledAttentionThirdBackward"; }
  static variable_list plain(const Settings& settings, const variable_list& in) {
    warn_of_plain_derivative();
    const auto d =
        plain_attention_double_backward(tangents_at(in, 0), cotangents_at(in, 4), point_at(in, 7, 11), settings);
    return settings.cotangents({d.begin(), d.end()});
  }
  static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list&,
                           const variable_list& grads, const std::vector<bool>&) {
    return differentiate([&](const variable_list& x) { return plain(settings, x); }, in, kInputs,
                         settings.cotangents(grads));
  }
  // Never with tangents: double_backward_autograd takes those to the plain-tensor formula.
  static variable_list jvp(const Settings&, const variable_list&, const variable_list&, const variable_list&) {
    return variable_list(kOutputs);
  }
};

template <class Tuple>
variable_list to_list(Tuple&& tuple) {
  return std::apply([](auto&&... t) { return variable_list{std::move(t)...}; }, std::move(tuple));
}

Three forward_autograd(c10::DispatchKeySet keys, RESCALED_POINT, RESCALED_SETTINGS) {
  const variable_list in{query, key, value, defined_or(bias), defined_or(mask), defined_or(dropout_seed)};
  // A graph traced by torch.compile without tangents calls this op directly. Duals that reach it from outside would
  // leave stale tangents in the code Inductor fused around it (true for ATen's operators too, silently): refuse.
  TORCH_CHECK_NOT_IMPLEMENTED(
      inside_public_attention() || !any_tangent(in, Forward::kInputs),
      "torch_rescaled::attention: expected no forward-mode tangents from outside a compiled graph, got a dual tensor; "
      "enter torch.func.jvp or the dual level inside the compiled function");
  static const auto op = handle<ForwardSignature>("torch_rescaled::_attention_forward");
  const auto out = record<Forward>(RESCALED_THE_SETTINGS, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, query, key, value, bias, mask, dropout_seed,
                                 dropout_p, is_causal, scale, kind));
  });
  return {out[0], out[1], out[2]};
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
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp_autograd));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward_autograd));
}
