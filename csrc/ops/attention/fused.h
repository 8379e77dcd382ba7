// SPDX-License-Identifier: BSD-3-Clause
// The primitives by the fused kernels of a device: checks, outputs, parameters. A `Device` has, all static,
//
//   bool serves(const Point&, const Leading&)                  else the plain-tensor formulas do
//   void forward(AttentionParameters&, const Tensor& query)    and jvp, backward, double_backward (its second pass);
//                                                              brings the workspace, never gets an empty batch
//   bool kForwardJvp                                           void forward_jvp(...): both in one pass
//   bool serves_dropout_mask(const Tensor& seeds)
//   void dropout_mask(const Tensor& seeds, int64_t queries, int64_t keys, double dropout_p, Tensor& mask)
#pragma once
#include "binding.h"
#include "checks.h"
#include "plain.h"

namespace rescaled::ops {

// What plain-tensor formulas gave, laid out as the kernels' outputs are: a matrix as what it belongs to is.
inline Tensor finished(bool wanted, const Tensor& t, const Tensor& like) {
  return wanted && t.defined() ? laid_out(t, like) : none(like);
}

// Outputs of the forward, or their tangents, with nothing in them. `type`: of the output.
inline Saved empty_outputs(const Point& x, const Leading& leading, at::ScalarType type) {
  const int64_t rows = x.query.size(-2);
  const auto statistics = x.query.options().dtype(accumulation_type(x.query));
  return {empty_laid_out(leading.full({rows, x.value.size(-1)}), output_guide(x.query, x.value),
                         x.query.options().dtype(type)),
          at::empty(leading.full({rows}), statistics), at::empty(leading.full({rows}), statistics)};
}
// What plain-tensor formulas gave, laid out as the kernels' outputs are.
inline Saved finished(const Saved& out, const Point& x) {
  return {laid_out(out.output, output_guide(x.query, x.value)), out.balance.contiguous(),
          out.log_normalizer.contiguous()};
}

template <class Device>
Saved forward_of(const Point& x, const Leading& leading, const AttentionSettings& settings) {
  if (!Device::serves(x, leading)) return finished(plain_attention_forward(x, settings), x);
  const Saved out = empty_outputs(x, leading, x.query.scalar_type());
  if (!leading.empty()) {
    AttentionParameters p = parameters(x, settings, leading);
    set_outputs(p, leading, out);
    Device::forward(p, x.query);
  }
  return out;
}

// `type` of the tangent of the output: the double backward keeps it in the arithmetic type.
template <class Device>
Saved jvp_of(const Point& x, const Leading& leading, const Tangents& tangents, const Saved& saved,
             const AttentionSettings& settings, at::ScalarType type) {
  if (!Device::serves(x, leading)) return finished(plain_attention_jvp(tangents, x, settings), x);
  const Saved out = empty_outputs(x, leading, type);
  if (!leading.empty()) {
    AttentionParameters p = parameters(x, settings, leading);
    set_tangents(p, leading, tangents), set_saved(p, leading, saved);
    set_outputs(p, leading, out);
    Device::jvp(p, x.query);
  }
  return out;
}

template <class Device>
Three forward(RESCALED_POINT, RESCALED_SETTINGS) {
  const Point x = RESCALED_THE_POINT;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_point("_attention_forward", x, settings);
  const Saved out = forward_of<Device>(x, Leading(x), settings);
  return {out.output, out.balance, out.log_normalizer};
}

template <class Device>
Six forward_jvp(RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SETTINGS) {
  const Point x = RESCALED_THE_POINT;
  const Tangents t = RESCALED_THE_TANGENTS;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_forward_jvp(x, t, settings);
  const Leading leading(x);
  Saved out, moved;
  if constexpr (Device::kForwardJvp) {
    out = empty_outputs(x, leading, query.scalar_type()), moved = empty_outputs(x, leading, query.scalar_type());
    if (!leading.empty()) {
      AttentionParameters p = parameters(x, settings, leading);
      set_tangents(p, leading, t), set_outputs(p, leading, out);
      p.tangent_output = leading.output(moved.output, 2), p.tangent_balance = leading.output(moved.balance, 1),
      p.tangent_log_normalizer = leading.output(moved.log_normalizer, 1);
      Device::forward_jvp(p, query);
    }
  } else {
    out = forward_of<Device>(x, leading, settings);
    moved = jvp_of<Device>(x, leading, t, out, settings, query.scalar_type());
  }
  return {out.output, out.balance, out.log_normalizer, moved.output, moved.balance, moved.log_normalizer};
}

template <class Device>
Three jvp(RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS) {
  const Point x = RESCALED_THE_POINT;
  const Saved saved = RESCALED_THE_SAVED;
  const Tangents tangents = RESCALED_THE_TANGENTS;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_jvp(x, tangents, saved, settings);
  const Saved out = jvp_of<Device>(x, Leading(x), tangents, saved, settings, query.scalar_type());
  return {out.output, out.balance, out.log_normalizer};
}

template <class Device>
Four backward(RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS, std::array<bool, 4> need) {
  const Point x = RESCALED_THE_POINT;
  const Saved saved = RESCALED_THE_SAVED;
  const Cotangents cotangents = RESCALED_THE_COTANGENTS;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_backward(x, cotangents, saved, settings);
  const Leading leading(x);
  if (!Device::serves(x, leading)) {
    const auto d = plain_attention_backward(cotangents, x, settings);
    return {finished(need[0], d[0], query), finished(need[1], d[1], key), finished(need[2], d[2], value),
            need[3] && d[3].defined() ? d[3].contiguous() : none(query)};
  }
  const Gradients gradients(x, leading, need);
  if (leading.empty()) {
    gradients.clear();
  } else {
    AttentionParameters p = parameters(x, settings, leading);
    set_saved(p, leading, saved);
    set_cotangents(p, leading, cotangents);
    gradients.set(p, leading);
    Device::backward(p, query);
  }
  return {gradients.query.reduced(), gradients.key.reduced(), gradients.value.reduced(),
          gradients.bias.defined() ? gradients.bias : none(query)};
}

template <class Device>
Seven double_backward(RESCALED_TANGENTS, RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS,
                      std::array<bool, 7> need) {
  const Point x = RESCALED_THE_POINT;
  const Saved saved = RESCALED_THE_SAVED;
  const Tangents tangents = RESCALED_THE_TANGENTS;
  const Cotangents cotangents = RESCALED_THE_COTANGENTS;
  const AttentionSettings settings = RESCALED_THE_SETTINGS;
  check_double_backward(x, tangents, cotangents, saved, settings);
  const Leading leading(x);
  if (!Device::serves(x, leading)) {
    const auto d = plain_attention_double_backward(tangents, cotangents, x, settings);
    const auto one = [&](size_t i, const Tensor& like) { return finished(need[i], d[i], like); };
    const auto plain = [&](size_t i) { return need[i] && d[i].defined() ? d[i].contiguous() : none(query); };
    return {
        one(0, output_guide(query, value)), plain(1), plain(2), one(3, query), one(4, key), one(5, value), plain(6)};
  }
  const Saved first = jvp_of<Device>(x, leading, tangents, saved, settings, accumulation_type(query));
  const Gradients gradients(x, leading, {need[3], need[4], need[5], need[6]});
  if (leading.empty()) {
    gradients.clear();
  } else if (need[3] || need[4] || need[5] || need[6]) {
    AttentionParameters p = parameters(x, settings, leading);
    set_tangents(p, leading, tangents), set_saved(p, leading, saved);
    set_cotangents(p, leading, cotangents);
    p.jvp_output = leading.input(first.output, 2), p.jvp_balance = leading.input(first.balance, 1),
    p.jvp_log_normalizer = leading.input(first.log_normalizer, 1);
    gradients.set(p, leading);
    Device::double_backward(p, query);
  }
  const auto wanted = [&](bool is, const Tensor& t) { return is ? t : none(t); };
  return {wanted(need[0], first.output.to(query.scalar_type())),
          wanted(need[1], first.balance),
          wanted(need[2], first.log_normalizer),
          gradients.query.reduced(),
          gradients.key.reduced(),
          gradients.value.reduced(),
          gradients.bias.defined() ? gradients.bias : none(query)};
}

// The mask alone, for the plain-tensor formulas and for tests: true = kept.
template <class Device>
Tensor dropout_mask(const Tensor& dropout_seed, int64_t queries, int64_t keys, double dropout_p) {
  check_dropout_mask(dropout_seed, queries, keys, dropout_p);
  if (!Device::serves_dropout_mask(dropout_seed)) return plain_dropout_mask(dropout_seed, queries, keys, dropout_p);
  std::vector<int64_t> sizes = dropout_seed.sizes().vec();
  sizes.push_back(queries), sizes.push_back(keys);
  Tensor mask = at::empty(sizes, dropout_seed.options().dtype(at::kBool));
  if (mask.numel() != 0) Device::dropout_mask(dropout_seed.contiguous(), queries, keys, dropout_p, mask);
  return mask;
}

}  // namespace rescaled::ops
