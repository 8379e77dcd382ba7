// SPDX-License-Identifier: BSD-3-Clause
// Every schema of the library, on one screen.
#include <torch/library.h>

#include <vector>

// Public operators: argument for argument `torch.nn.functional.scaled_dot_product_attention`, plus `kind`.
// clang-format off
//   query [*, H, N, D], key [*, Hk, M, D], value [*, Hk, M, Dv]   any rank >= 2; leading dimensions broadcast;
//                                                                 with enable_gqa Hk divides H
//   attn_mask broadcastable to [*, H, N, M]                       bool (True = attend) or floating (log weight of key)
//   -> output [*, H, N, Dv], balance [*, H, N], log_normalizer [*, H, N]
// clang-format on
#define PUBLIC_ARGUMENTS                                                                   \
  "(Tensor query, Tensor key, Tensor value, Tensor? attn_mask=None, float dropout_p=0.0, " \
  "bool is_causal=False, *, float? scale=None, bool enable_gqa=False, str kind=\"exp\")"

// Primitives: a family closed under second order; L = leading dimensions.
//   query [*L, N, D], key [*L, M, D], value [*L, M, Dv], bias [*L, N | 1, M | 1] floating, mask [*L, N | 1, M | 1]
//   bool, dropout_seed [*L] int64: one per matrix; matrices that share a seed share the dropout mask.
// All tensors have the same number of leading dimensions; each of a tensor's is the broadcast size or 1. Gradients have
// the shape of the input they belong to (reduced over its 1s), tangents that of their primal. An output that `need`
// does not ask for is an empty [0]. A missing tangent or cotangent is zero and costs nothing.
#define POINT "Tensor query, Tensor key, Tensor value, Tensor? bias, Tensor? mask, Tensor? dropout_seed"
#define SAVED "Tensor output, Tensor balance, Tensor log_normalizer"
#define SETTINGS "float dropout_p, bool is_causal, float? scale, str kind"
#define TANGENTS "Tensor? tangent_query, Tensor? tangent_key, Tensor? tangent_value, Tensor? tangent_bias"
#define COTANGENTS "Tensor? grad_output, Tensor? grad_balance, Tensor? grad_log_normalizer"

TORCH_LIBRARY(torch_rescaled, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("attention" PUBLIC_ARGUMENTS " -> Tensor", tags);
  m.def("attention_with_normalizer" PUBLIC_ARGUMENTS " -> (Tensor output, Tensor balance, Tensor log_normalizer)",
        tags);
  // target [*, H, N, Dv], log_row_scale [*, H, N] -> a number, or [*, H, N] with reduction "none"
  m.def(
      "attention_loss(Tensor query, Tensor key, Tensor value, Tensor target, *, Tensor? attn_mask=None, "
      "bool is_causal=False, float? scale=None, bool enable_gqa=False, str kind=\"exp\", str form=\"rescaled\", "
      "Tensor? log_row_scale=None, str reduction=\"sum\", bool log=False) -> Tensor",
      tags);

  m.def("_attention_forward(" POINT ", " SETTINGS ") -> (" SAVED ")", tags);
  m.def("_attention_backward(" COTANGENTS ", " POINT ", " SAVED ", " SETTINGS
        ", bool[4] need)"
        " -> (Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)",
        tags);
  m.def("_attention_jvp(" TANGENTS ", " POINT ", " SAVED ", " SETTINGS
        ")"
        " -> (Tensor tangent_output, Tensor tangent_balance, Tensor tangent_log_normalizer)",
        tags);
  m.def("_attention_double_backward(" TANGENTS ", " COTANGENTS ", " POINT ", " SAVED ", " SETTINGS
        ", bool[7] need)"
        " -> (Tensor tangent_output, Tensor tangent_balance, Tensor tangent_log_normalizer,"
        " Tensor grad_query, Tensor grad_key, Tensor grad_value, Tensor grad_bias)",
        tags);

  // The kept scores of a problem with this seed: [*L] -> bool [*L, queries, keys].
  m.def("_attention_dropout_mask(Tensor dropout_seed, SymInt queries, SymInt keys, float dropout_p) -> Tensor", tags);

  m.def("_cuda_path(int device) -> str", tags);
  m.def("build_info(bool devices=False) -> str", tags);
}
