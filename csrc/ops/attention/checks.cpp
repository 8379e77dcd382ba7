// SPDX-License-Identifier: BSD-3-Clause
#include "checks.h"

#include <sstream>

#include "../../kernels/attention/parameters.h"
#include "../check.h"

namespace rescaled::ops {
namespace {

// "[2, 8, M, 64]": the sizes of `t` with the last two replaced.
std::string shape_with(const Tensor& t, const std::string& row, const std::string& column) {
  std::ostringstream out;
  out << "[";
  for (int64_t d = 0; d + 2 < t.dim(); ++d) out << t.sym_size(d) << ", ";
  out << row << ", " << column << "]";
  return out.str();
}
std::string text(const c10::SymInt& n) {
  std::ostringstream out;
  out << n;
  return out.str();
}

void check_device_and_type(const char* op, const Tensor& query, const Tensor& t, const char* name) {
  check_device(op, name, t, "query", query);
  RESCALED_CHECK(TYPE, t.scalar_type() == query.scalar_type(), op, name, " of query's dtype ", query.scalar_type(),
                 ", got ", t.scalar_type());
}

void check_supported(const char* op, const Tensor& query) {
  check_has_kernels(op, "query", query);
  RESCALED_CHECK(TYPE, floating(query.scalar_type()), op, "query of dtype float32, float64, bfloat16 or float16, got ",
                 query.scalar_type());
  RESCALED_CHECK(VALUE, query.layout() == at::kStrided, op, "dense (strided) tensors, got query with layout ",
                 query.layout());
}

void check_not_nested(const char* op, const char* name, const Tensor& t) {
  RESCALED_CHECK(
      NOT_IMPLEMENTED, !t.defined() || !t.is_nested(), op, name,
      " to be a dense torch.Tensor, got a nested one; packed variable lengths do not exist yet, padding with "
      "a boolean attn_mask does");
}

void check_dropout(const char* op, double p) {
  RESCALED_CHECK(VALUE, p >= 0 && p < 1, op, "dropout_p in [0, 1), got ", p);
}

void check_seed_type(const char* op, const Tensor& seed) {
  RESCALED_CHECK(TYPE, seed.scalar_type() == at::kLong, op, "dropout_seed of dtype int64, got ", seed.scalar_type());
}

void check_bias_type(const char* op, const char* name, const Tensor& query, at::ScalarType type) {
  RESCALED_CHECK(TYPE, type == query.scalar_type() || (type == at::kFloat && query.scalar_type() != at::kDouble), op,
                 name, " of dtype bool, of query's dtype ", query.scalar_type(),
                 query.scalar_type() == at::kDouble ? "" : ", or float32", ", got ", type);
}

void check_key_value(const char* op, const Tensor& query, const Tensor& key, const Tensor& value) {
  RESCALED_CHECK(VALUE, key.sym_size(-1) == query.sym_size(-1), op, "key of shape ",
                 shape_with(key, "M", text(query.sym_size(-1))), " to match query's head size ", query.sym_size(-1),
                 ", got ", shape(key));
  RESCALED_CHECK(VALUE, value.sym_size(-2) == key.sym_size(-2), op, "value of shape ",
                 shape_with(value, text(key.sym_size(-2)), "Dv"), " to match key's length ", key.sym_size(-2), ", got ",
                 shape(value));
}

}  // namespace

void check_public(const char* op, const PublicArguments& x) {
  const auto named = {std::pair<const char*, const Tensor&>{"query", x.query}, {"key", x.key}, {"value", x.value}};
  for (const auto& [name, t] : named) check_not_nested(op, name, t);
  check_not_nested(op, "attn_mask", x.attn_mask);
  check_supported(op, x.query);
  for (const auto& [name, t] : named) {
    RESCALED_CHECK(VALUE, t.layout() == at::kStrided, op, "dense (strided) tensors, got ", name, " with layout ",
                   t.layout());
    RESCALED_CHECK(VALUE, t.dim() >= 2, op, name, " of at least 2 dimensions [*, length, size], got ", shape(t));
    check_device_and_type(op, x.query, t, name);
  }
  check_key_value(op, x.query, x.key, x.value);
  check_dropout(op, x.dropout_p);
  RESCALED_CHECK(VALUE, x.kind == "exp" || x.kind == "cosh" || x.kind == "sinh" || x.kind == "signed", op,
                 "kind 'exp', 'cosh', 'sinh' or 'signed', got '", x.kind, "'");
  std::vector<c10::SymInt> full = leading_sizes({x.query, x.key, x.value, {}, {}, {}});
  bool regrouped = false;
  if (x.enable_gqa) {
    RESCALED_CHECK(VALUE, x.query.dim() >= 3 && x.key.dim() >= 3 && x.value.dim() >= 3, op,
                   "query, key and value of at least 3 dimensions [*, heads, length, size] with enable_gqa, got ",
                   shape(x.query), ", ", shape(x.key), ", ", shape(x.value));
    const c10::SymInt heads = x.query.sym_size(-3), kv_heads = x.key.sym_size(-3);
    RESCALED_CHECK(VALUE, x.value.sym_size(-3) == kv_heads, op, "value with key's ", kv_heads, " heads, got ",
                   shape(x.value));
    RESCALED_CHECK(VALUE, heads == kv_heads || (kv_heads != 0 && heads % kv_heads == 0), op,
                   "a number of query heads that is a multiple of key's ", kv_heads, " with enable_gqa, got ", heads);
    full.back() = heads;
    regrouped = heads != kv_heads && kv_heads != 1;
  }
  for (const auto& [name, t] : named) {
    const bool grouped = x.enable_gqa && &t != &x.query;
    std::vector<c10::SymInt> expected = full;
    if (grouped) expected.back() = t.sym_size(-3);
    check_leading(op, name, t, 2, expected);
  }
  check_batch_rank(op, full, regrouped);
  if (!x.attn_mask.defined()) return;
  const Tensor& mask = x.attn_mask;
  check_device(op, "attn_mask", mask, "query", x.query);
  if (mask.scalar_type() != at::kBool) check_bias_type(op, "attn_mask", x.query, mask.scalar_type());
  RESCALED_CHECK(VALUE, mask.layout() == at::kStrided, op, "a dense (strided) attn_mask, got layout ", mask.layout());
  RESCALED_CHECK(VALUE, mask.dim() >= 2, op, "attn_mask of at least 2 dimensions [*, N, M], got ", shape(mask));
  const c10::SymInt rows = x.query.sym_size(-2), columns = x.key.sym_size(-2);
  const bool fits =
      (mask.sym_size(-2) == rows || mask.sym_size(-2) == 1) && (mask.sym_size(-1) == columns || mask.sym_size(-1) == 1);
  std::vector<c10::SymInt> expected = full;
  expected.push_back(rows), expected.push_back(columns);
  RESCALED_CHECK(VALUE, fits, op, "attn_mask that broadcasts to ", list(expected), ", got ", shape(mask));
  check_leading(op, "attn_mask", mask, 2, full);
}

void check_loss(const PublicArguments& x, const LossArguments& loss) {
  const char* op = "attention_loss";
  RESCALED_CHECK(VALUE, loss.form == "rescaled" || loss.form == "normalized", op,
                 "form 'rescaled' or 'normalized', got '", loss.form, "'");
  RESCALED_CHECK(VALUE, loss.reduction == "none" || loss.reduction == "sum" || loss.reduction == "mean", op,
                 "reduction 'none', 'sum' or 'mean', got '", loss.reduction, "'");
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"target", loss.target}, {"log_row_scale", loss.log_row_scale}}) {
    if (!t.defined()) continue;
    check_device(op, name, t, "query", x.query);
    const bool half = x.query.scalar_type() == at::kHalf || x.query.scalar_type() == at::kBFloat16;
    RESCALED_CHECK(TYPE, t.scalar_type() == x.query.scalar_type() || (half && t.scalar_type() == at::kFloat), op, name,
                   " of query's dtype ", x.query.scalar_type(), half ? " or float32" : "", ", got ", t.scalar_type());
  }
  RESCALED_CHECK(VALUE, loss.form == "rescaled" || !loss.log_row_scale.defined(), op,
                 "log_row_scale only with form 'rescaled', got it with form '", loss.form, "'");
  RESCALED_CHECK(
      VALUE, x.query.scalar_type() != at::kHalf || loss.form != "rescaled" || loss.log || loss.log_row_scale.defined(),
      op,
      "log_row_scale (or log=True) with float16 and form 'rescaled', got none: the gradients are of the size "
      "of the squared normalizer, 1e6 at 1024 zero scores, and float16 ends at 65504");
}

void check_loss_shapes(const LossArguments& loss, const Saved& out) {
  const auto fits = [](const Tensor& t, const Tensor& to) {
    for (int64_t d = 1; d <= t.dim(); ++d)
      if (d > to.dim() || (t.sym_size(-d) != 1 && t.sym_size(-d) != to.sym_size(-d))) return false;
    return true;
  };
  RESCALED_CHECK(VALUE, fits(loss.target, out.output), "attention_loss", "target that broadcasts to ",
                 shape(out.output), ", got ", shape(loss.target));
  if (loss.log_row_scale.defined())
    RESCALED_CHECK(VALUE, fits(loss.log_row_scale, out.balance), "attention_loss", "log_row_scale that broadcasts to ",
                   shape(out.balance), ", got ", shape(loss.log_row_scale));
}

void check_point(const char* op, const Point& x, const AttentionSettings& settings) {
  check_supported(op, x.query);
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"key", x.key}, {"value", x.value}})
    check_device_and_type(op, x.query, t, name);
  for (const auto& [name, t] :
       {std::pair<const char*, const Tensor&>{"bias", x.bias}, {"mask", x.mask}, {"dropout_seed", x.dropout_seed}})
    if (t.defined()) check_device(op, name, t, "query", x.query);
  RESCALED_CHECK(VALUE, x.query.dim() >= 2, op, "query of at least 2 dimensions [*, N, D], got ", shape(x.query));
  for (const auto& [name, t, suffix] : {std::tuple<const char*, const Tensor&, int64_t>{"key", x.key, 2},
                                        {"value", x.value, 2},
                                        {"bias", x.bias, 2},
                                        {"mask", x.mask, 2},
                                        {"dropout_seed", x.dropout_seed, 0}})
    RESCALED_CHECK(VALUE, !t.defined() || t.dim() - suffix == x.query.dim() - 2, op, name, " with query's ",
                   x.query.dim() - 2, " leading dimensions, got ", shape(t));
  check_key_value(op, x.query, x.key, x.value);
  check_dropout(op, settings.dropout_p);
  RESCALED_CHECK(VALUE, settings.kind == "exp" || settings.kind == "cosh" || settings.kind == "sinh", op,
                 "kind 'exp', 'cosh' or 'sinh', got '", settings.kind, "'");
  RESCALED_CHECK(VALUE, settings.dropout_p == 0 || x.dropout_seed.defined(), op, "dropout_seed with dropout_p ",
                 settings.dropout_p, ", got none");
  if (x.dropout_seed.defined()) check_seed_type(op, x.dropout_seed);
  if (x.mask.defined())
    RESCALED_CHECK(TYPE, x.mask.scalar_type() == at::kBool, op, "mask of dtype bool, got ", x.mask.scalar_type());
  if (x.bias.defined()) check_bias_type(op, "bias", x.query, x.bias.scalar_type());
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"bias", x.bias}, {"mask", x.mask}}) {
    if (!t.defined()) continue;
    RESCALED_CHECK(VALUE,
                   (t.sym_size(-2) == x.query.sym_size(-2) || t.sym_size(-2) == 1) &&
                       (t.sym_size(-1) == x.key.sym_size(-2) || t.sym_size(-1) == 1),
                   op, name, " of shape [*, ", x.query.sym_size(-2), " or 1, ", x.key.sym_size(-2), " or 1], got ",
                   shape(t));
  }
  const auto full = leading_sizes(x);
  for (const auto& [name, t, suffix] : {std::tuple<const char*, const Tensor&, int64_t>{"query", x.query, 2},
                                        {"key", x.key, 2},
                                        {"value", x.value, 2},
                                        {"bias", x.bias, 2},
                                        {"mask", x.mask, 2},
                                        {"dropout_seed", x.dropout_seed, 0}})
    if (t.defined()) check_leading(op, name, t, suffix, full);
  check_batch_rank(op, full);
}

namespace {

void check_like(const char* op, const char* name, const Tensor& t, const Tensor& like) {
  if (!t.defined()) return;
  RESCALED_CHECK(VALUE, t.sym_sizes() == like.sym_sizes(), op, name, " of shape ", shape(like), ", got ", shape(t));
  RESCALED_CHECK(TYPE, t.scalar_type() == like.scalar_type(), op, name, " of dtype ", like.scalar_type(), ", got ",
                 t.scalar_type());
  RESCALED_CHECK(VALUE, t.device() == like.device(), op, name, " on ", like.device(), ", got ", t.device());
}

void check_saved(const char* op, const Point& x, const Saved& saved) {
  std::vector<c10::SymInt> row_sizes = leading_sizes(x);
  row_sizes.push_back(x.query.sym_size(-2));
  std::vector<c10::SymInt> output_sizes = row_sizes;
  output_sizes.push_back(x.value.sym_size(-1));
  const auto check = [&](const char* name, const Tensor& t, const std::vector<c10::SymInt>& sizes,
                         at::ScalarType type) {
    RESCALED_CHECK(VALUE, t.sym_sizes() == c10::SymIntArrayRef(sizes), op, name, " of shape ", list(sizes), ", got ",
                   shape(t));
    RESCALED_CHECK(TYPE, t.scalar_type() == type, op, name, " of dtype ", type, ", got ", t.scalar_type());
    check_device(op, name, t, "query", x.query);
  };
  check("output", saved.output, output_sizes, x.query.scalar_type());
  check("balance", saved.balance, row_sizes, accumulation_type(x.query));
  check("log_normalizer", saved.log_normalizer, row_sizes, accumulation_type(x.query));
}

void check_tangents(const char* op, const Point& x, const Tangents& t) {
  check_like(op, "tangent_query", t.query, x.query), check_like(op, "tangent_key", t.key, x.key),
      check_like(op, "tangent_value", t.value, x.value);
  RESCALED_CHECK(VALUE, !t.bias.defined() || x.bias.defined(), op, "tangent_bias only with a bias, got ",
                 shape(t.bias));
  check_like(op, "tangent_bias", t.bias, x.bias);
}

void check_cotangents(const char* op, const Saved& saved, const Cotangents& g) {
  check_like(op, "grad_output", g.output, saved.output), check_like(op, "grad_balance", g.balance, saved.balance);
  check_like(op, "grad_log_normalizer", g.log_normalizer, saved.log_normalizer);
}

}  // namespace

void check_backward(const Point& x, const Cotangents& g, const Saved& saved, const AttentionSettings& settings) {
  check_point("_attention_backward", x, settings);
  check_saved("_attention_backward", x, saved);
  check_cotangents("_attention_backward", saved, g);
}

void check_forward_jvp(const Point& x, const Tangents& t, const AttentionSettings& settings) {
  check_point("_attention_forward_jvp", x, settings);
  check_tangents("_attention_forward_jvp", x, t);
}

void check_jvp(const Point& x, const Tangents& t, const Saved& saved, const AttentionSettings& settings) {
  check_point("_attention_jvp", x, settings);
  check_saved("_attention_jvp", x, saved);
  check_tangents("_attention_jvp", x, t);
}

void check_double_backward(const Point& x, const Tangents& t, const Cotangents& g, const Saved& saved,
                           const AttentionSettings& settings) {
  check_point("_attention_double_backward", x, settings);
  check_saved("_attention_double_backward", x, saved);
  check_tangents("_attention_double_backward", x, t);
  check_cotangents("_attention_double_backward", saved, g);
}

void check_dropout_mask(const Tensor& dropout_seed, const c10::SymInt& queries, const c10::SymInt& keys,
                        double dropout_p) {
  const char* op = "_attention_dropout_mask";
  check_has_kernels(op, "dropout_seed", dropout_seed);
  check_seed_type(op, dropout_seed);
  RESCALED_CHECK(VALUE, queries >= 0 && keys >= 0, op, "queries and keys of at least 0, got ", queries, " and ", keys);
  check_dropout(op, dropout_p);
}

}  // namespace rescaled::ops
