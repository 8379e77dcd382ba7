// SPDX-License-Identifier: BSD-3-Clause
// Shapes and dtypes of the primitives' outputs: the Meta kernels, for fake tensors, export and torch.compile.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "layout.h"

namespace rescaled::ops {
namespace {

Tensor empty_with(std::vector<c10::SymInt> leading, std::initializer_list<c10::SymInt> suffix,
                  const at::TensorOptions& options) {
  leading.insert(leading.end(), suffix);
  return at::empty_symint(leading, options);
}
Tensor empty_as(const Tensor& t) { return at::empty_symint(t.sym_sizes(), t.options()); }
// Of a matrix: laid out as what it belongs to is.
Tensor laid_out_as(const Tensor& t, const Tensor& like) {
  return empty_laid_out(t.sym_sizes().vec(), like, t.options());
}

Three outputs(const Point& x) {
  const auto full = leading_sizes(x);
  const auto statistics = x.query.options().dtype(accumulation_type(x.query));
  std::vector<c10::SymInt> sizes = full;
  sizes.insert(sizes.end(), {x.query.sym_size(-2), x.value.sym_size(-1)});
  return {empty_laid_out(sizes, output_guide(x.query, x.value), x.query.options()),
          empty_with(full, {x.query.sym_size(-2)}, statistics), empty_with(full, {x.query.sym_size(-2)}, statistics)};
}
Four gradients(const Point& x, std::array<bool, 4> need) {
  const auto one = [&](bool wanted, const Tensor& t) { return wanted ? laid_out_as(t, t) : none(t); };
  return {one(need[0], x.query), one(need[1], x.key), one(need[2], x.value),
          need[3] && x.bias.defined() ? empty_as(x.bias) : none(x.query)};
}

Three forward(RESCALED_POINT, RESCALED_SETTINGS) {
  const Point x = RESCALED_THE_POINT;
  check_point("_attention_forward", x, RESCALED_THE_SETTINGS);
  return outputs(x);
}
Four backward(RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS, std::array<bool, 4> need) {
  const Point x = RESCALED_THE_POINT;
  check_backward(x, RESCALED_THE_COTANGENTS, RESCALED_THE_SAVED, RESCALED_THE_SETTINGS);
  return gradients(x, need);
}
Six forward_jvp(RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SETTINGS) {
  const Point x = RESCALED_THE_POINT;
  check_forward_jvp(x, RESCALED_THE_TANGENTS, RESCALED_THE_SETTINGS);
  return std::tuple_cat(outputs(x), outputs(x));
}
Three jvp(RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS) {
  const Point x = RESCALED_THE_POINT;
  check_jvp(x, RESCALED_THE_TANGENTS, RESCALED_THE_SAVED, RESCALED_THE_SETTINGS);
  return {laid_out_as(output, output_guide(query, value)), empty_as(balance), empty_as(log_normalizer)};
}
Seven double_backward(RESCALED_TANGENTS, RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS,
                      std::array<bool, 7> need) {
  const Point x = RESCALED_THE_POINT;
  check_double_backward(x, RESCALED_THE_TANGENTS, RESCALED_THE_COTANGENTS, RESCALED_THE_SAVED, RESCALED_THE_SETTINGS);
  auto [grad_query, grad_key, grad_value, grad_bias] = gradients(x, {need[3], need[4], need[5], need[6]});
  const auto one = [](bool wanted, const Tensor& t) { return wanted ? empty_as(t) : none(t); };
  return {need[0] ? laid_out_as(output, output_guide(query, value)) : none(output),
          one(need[1], balance),
          one(need[2], log_normalizer),
          grad_query,
          grad_key,
          grad_value,
          grad_bias};
}

Tensor dropout_mask(const Tensor& dropout_seed, c10::SymInt queries, c10::SymInt keys, double dropout_p) {
  check_dropout_mask(dropout_seed, queries, keys, dropout_p);
  return empty_with(dropout_seed.sym_sizes().vec(), {queries, keys}, dropout_seed.options().dtype(at::kBool));
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, Meta, m) {
  m.impl("_attention_forward", TORCH_FN(rescaled::ops::forward));
  m.impl("_attention_backward", TORCH_FN(rescaled::ops::backward));
  m.impl("_attention_forward_jvp", TORCH_FN(rescaled::ops::forward_jvp));
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward));
  m.impl("_attention_dropout_mask", TORCH_FN(rescaled::ops::dropout_mask));
}
