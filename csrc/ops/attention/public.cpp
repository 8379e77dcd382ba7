// SPDX-License-Identifier: BSD-3-Clause
// The public operators: arguments to the primitives' contract by views, epilogues on (W, balance, log_normalizer).
#include "public.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/where.h>
#include <torch/library.h>

#include <limits>

#include "autocast.h"
#include "checks.h"

namespace rescaled::ops {
namespace {

thread_local int depth = 0;
struct Inside {
  Inside() { ++depth; }
  ~Inside() { --depth; }
};

#define PUBLIC_PARAMETERS                                                                                      \
  const Tensor &query, const Tensor &key, const Tensor &value, const MaybeTensor &attn_mask, double dropout_p, \
      bool is_causal, std::optional<double> scale, bool enable_gqa, c10::string_view kind
#define THE_PUBLIC_ARGUMENTS \
  PublicArguments { query, key, value, defined_or(attn_mask), dropout_p, is_causal, scale, enable_gqa, kind }

// Query heads [*, H, ...] as [*, Hk, H / Hk, ...], the heads of keys and masks beside them: nothing is copied or
// expanded.
Tensor grouped(const Tensor& t, const c10::SymInt& kv_heads) {
  if (!t.defined() || t.dim() < 3) return t;
  const c10::SymInt heads = t.sym_size(-3);
  return heads == 1 ? t.unsqueeze(-3) : t.unflatten_symint(-3, {kv_heads, heads / kv_heads});
}

// One seed for each matrix: [*leading].
Tensor draw_seeds(const Point& x) {
  const auto options = x.query.options().dtype(at::kLong);
  return at::randint_symint(std::numeric_limits<int64_t>::max(), leading_sizes(x), options);
}

}  // namespace

Saved attention_core(const char* op, const PublicArguments& args) {
  check_public(op, args);
  const Inside inside;
  Point x{args.query, args.key, args.value, {}, {}, {}};
  if (args.attn_mask.defined()) (args.attn_mask.scalar_type() == at::kBool ? x.mask : x.bias) = args.attn_mask;
  const bool group = args.enable_gqa && x.query.sym_size(-3) != x.key.sym_size(-3);
  if (group) {
    const c10::SymInt kv_heads = x.key.sym_size(-3);
    x.query = x.query.unflatten_symint(-3, {kv_heads, x.query.sym_size(-3) / kv_heads});
    x.key = x.key.unsqueeze(-3), x.value = x.value.unsqueeze(-3);
    x.bias = grouped(x.bias, kv_heads), x.mask = grouped(x.mask, kv_heads);
  }
  int64_t rank = 2;
  for (const Tensor& t : {x.query, x.key, x.value, x.bias, x.mask})
    if (t.defined()) rank = std::max(rank, t.dim());
  for (Tensor* t : {&x.query, &x.key, &x.value, &x.bias, &x.mask}) *t = with_rank(*t, rank);
  if (args.dropout_p > 0) x.dropout_seed = draw_seeds(x);
  const AttentionSettings settings{args.dropout_p, args.is_causal, args.scale,
                                   args.kind == "signed" ? "sinh" : std::string(args.kind)};
  Saved out = attention_forward(x, settings);
  if (group) out = {out.output.flatten(-4, -3), out.balance.flatten(-3, -2), out.log_normalizer.flatten(-3, -2)};
  return out;
}

Tensor divided_by_balance(const Tensor& output, const Saved& out) {
  const Tensor keyless = out.log_normalizer == -std::numeric_limits<double>::infinity();
  return output / at::where(keyless, at::ones_like(out.balance), out.balance).unsqueeze(-1);
}

namespace {

Tensor attention(PUBLIC_PARAMETERS) {
  const Saved out = attention_core("attention", THE_PUBLIC_ARGUMENTS);
  return kind == "sinh" ? divided_by_balance(out.output, out).to(out.output.scalar_type()) : out.output;
}

Three attention_with_normalizer(PUBLIC_PARAMETERS) {
  const Saved out = attention_core("attention_with_normalizer", THE_PUBLIC_ARGUMENTS);
  return {out.output, out.balance, out.log_normalizer};
}

template <c10::DispatchKey kKey>
Tensor attention_autocast(PUBLIC_PARAMETERS) {
  return Autocast<Tensor(PUBLIC_PARAMETERS), kKey>::call("torch_rescaled::attention", query, key, value, attn_mask,
                                                         dropout_p, is_causal, scale, enable_gqa, kind);
}
template <c10::DispatchKey kKey>
Three attention_with_normalizer_autocast(PUBLIC_PARAMETERS) {
  return Autocast<Three(PUBLIC_PARAMETERS), kKey>::call("torch_rescaled::attention_with_normalizer", query, key, value,
                                                        attn_mask, dropout_p, is_causal, scale, enable_gqa, kind);
}

}  // namespace

bool inside_public_attention() { return depth > 0; }

}  // namespace rescaled::ops

using namespace rescaled::ops;

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeImplicitAutograd, m) {
  m.impl("attention", TORCH_FN(attention));
  m.impl("attention_with_normalizer", TORCH_FN(attention_with_normalizer));
}
// Under vmap the public operators take apart too; the primitives have a batching rule (registered from Python).
TORCH_LIBRARY_IMPL(torch_rescaled, FuncTorchBatched, m) {
  m.impl("attention", TORCH_FN(attention));
  m.impl("attention_with_normalizer", TORCH_FN(attention_with_normalizer));
}
// Also with unbatched tensors, so that vmap's randomness decides about their dropout seeds.
TORCH_LIBRARY_IMPL(torch_rescaled, FuncTorchVmapMode, m) {
  m.impl("attention", TORCH_FN(attention));
  m.impl("attention_with_normalizer", TORCH_FN(attention_with_normalizer));
}
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCPU, m) {
  m.impl("attention", TORCH_FN(attention_autocast<c10::DispatchKey::AutocastCPU>));
  m.impl("attention_with_normalizer", TORCH_FN(attention_with_normalizer_autocast<c10::DispatchKey::AutocastCPU>));
}
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCUDA, m) {
  m.impl("attention", TORCH_FN(attention_autocast<c10::DispatchKey::AutocastCUDA>));
  m.impl("attention_with_normalizer", TORCH_FN(attention_with_normalizer_autocast<c10::DispatchKey::AutocastCUDA>));
}
