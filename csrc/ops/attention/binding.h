// SPDX-License-Identifier: BSD-3-Clause
// Attention's tensors to kernel parameters, and the gradients' shapes. Nothing here knows the device.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <cmath>
#include <vector>

#include "../../kernels/attention/parameters.h"
#include "../batch.h"
#include "layout.h"
#include "primitives.h"

namespace rescaled::ops {

// Kernels walk first the dimensions that key or value have.
class Leading : public Batch {
 public:
  explicit Leading(const Point& x) : Batch(concrete(leading_sizes(x))) {
    const int64_t rank = x.query.dim() - 2;
    const auto shared_by_keys = [&](int64_t d) { return x.key.size(d) == 1 && x.value.size(d) == 1; };
    for (const bool shared : {false, true})
      for (int64_t d = 0; d < rank; ++d)
        if (full_[d] != 1 && shared_by_keys(d) == shared) order_.push_back(d);
    for (int64_t d = 0; d < rank; ++d) keys_.push_back(shared_by_keys(d) ? 1 : full_[d]);
  }
  void describe(AttentionParameters& p) const {
    set_sizes(p);
    p.kv_batches = p.group = 1;
    for (int i = 0; i < p.rank; ++i) (keys_[order_[i]] == 1 ? p.group : p.kv_batches) *= p.sizes[i];
  }
  std::vector<int64_t> keys(at::IntArrayRef suffix) const { return join(keys_, suffix); }

 private:
  std::vector<int64_t> keys_;
};

inline AttentionParameters parameters(const Point& x, const AttentionSettings& settings, const Leading& leading) {
  AttentionParameters p;
  leading.describe(p);
  p.kind = settings.kind == "exp" ? Kind::exp : settings.kind == "cosh" ? Kind::cosh : Kind::sinh;
  p.causal = settings.is_causal;
  p.dropout_p = settings.dropout_p;
  p.queries = x.query.size(-2), p.keys = x.key.size(-2), p.head_size = x.query.size(-1),
  p.value_size = x.value.size(-1);
  p.scale = settings.scale.value_or(1 / std::sqrt(static_cast<double>(std::max<int64_t>(p.head_size, 1))));
  p.query = leading.input(x.query, 2), p.key = leading.input(x.key, 2), p.value = leading.input(x.value, 2);
  p.bias = leading.input(x.bias, 2), p.mask = leading.input(x.mask, 2);
  if (settings.dropout_p > 0) p.dropout_seed = leading.input(x.dropout_seed, 0);
  return p;
}

// A gradient computed for every problem of the batch, reduced to the shape of the input it belongs to.
class Gradient {
 public:
  Gradient(bool wanted, const Tensor& input, const std::vector<int64_t>& computed) : input_(input) {
    if (!wanted) return;
    const bool whole = input.sizes() == at::IntArrayRef(computed);
    value_ = whole ? empty_laid_out(computed, input, input.options())
                   : at::empty(computed, input.options().dtype(accumulation_type(input)));
  }
  const Tensor& value() const { return value_; }
  Tensor reduced() const {
    if (!value_.defined()) return none(input_);
    if (input_.sizes() == value_.sizes()) return value_;
    return laid_out(value_.sum_to_size(input_.sizes()).to(input_.scalar_type()), input_);
  }

 private:
  Tensor input_, value_;
};

inline void set_tangents(AttentionParameters& p, const Leading& leading, const Tangents& t) {
  p.tangent_query = leading.input(t.query, 2), p.tangent_key = leading.input(t.key, 2);
  p.tangent_value = leading.input(t.value, 2), p.tangent_bias = leading.input(t.bias, 2);
}
inline void set_saved(AttentionParameters& p, const Leading& leading, const Saved& s) {
  p.saved_output = leading.input(s.output, 2), p.saved_balance = leading.input(s.balance, 1),
  p.saved_log_normalizer = leading.input(s.log_normalizer, 1);
}
inline void set_outputs(AttentionParameters& p, const Leading& leading, const Saved& out) {
  p.output = leading.output(out.output, 2), p.balance = leading.output(out.balance, 1),
  p.log_normalizer = leading.output(out.log_normalizer, 1);
}
inline void set_cotangents(AttentionParameters& p, const Leading& leading, const Cotangents& g) {
  p.grad_output = leading.input(g.output, 2), p.grad_balance = leading.input(g.balance, 1),
  p.grad_log_normalizer = leading.input(g.log_normalizer, 1);
}

// The gradients of both backward primitives; `need` for query, key, value, bias.
struct Gradients {
  Gradient query, key, value;
  Tensor bias;
  Gradients(const Point& x, const Leading& leading, std::array<bool, 4> need)
      : query(need[0], x.query, leading.full({x.query.size(-2), x.query.size(-1)})),
        key(need[1], x.key, leading.keys({x.key.size(-2), x.key.size(-1)})),
        value(need[2], x.value, leading.keys({x.value.size(-2), x.value.size(-1)})) {
    if (need[3] && x.bias.defined()) bias = at::empty(x.bias.sizes(), x.bias.options());
  }
  void set(AttentionParameters& p, const Leading& leading) const {
    p.grad_query = leading.output(query.value(), 2), p.grad_key = leading.output(key.value(), 2),
    p.grad_value = leading.output(value.value(), 2);
    p.grad_bias = leading.output(bias, 2);
  }
  void clear() const {  // an empty batch: sums over nothing
    for (const Tensor& t : {query.value(), key.value(), value.value(), bias})
      if (t.defined()) t.zero_();
  }
};

}  // namespace rescaled::ops
