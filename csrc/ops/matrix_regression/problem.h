// SPDX-License-Identifier: BSD-3-Clause
// A matrix regression as the primitives see it: the rows of u(query key^T) against those of the target (docs/math.md
// (12)). A1 X is the query, A2 the key.
#pragma once
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "../dispatch.h"

namespace rescaled::ops {

struct MatrixSettings {
  bool is_causal = false;
  std::string kind = "exp", form = "rescaled";
  // Where the target comes from: "dense", a teacher of kind "exp", "cosh" or "sinh", "sparse", or "zero".
  std::string source = "dense";
  // For compiled autograd: what it must specialize on, and what travels through its graph.
  template <class Arguments>
  void collect(Arguments& args) const {
    args.collect(is_causal);
    args.collect(kind);
    args.collect(form);
    args.collect(source);
  }
  template <class Arguments>
  void pack(Arguments& args) const {
    args.pack(is_causal);
    args.pack(kind);
    args.pack(form);
    args.pack(source);
  }
  template <class Arguments>
  void unpack(Arguments& args) {
    is_causal = args.template unpack<bool>();
    kind = args.template unpack<std::string>();
    form = args.template unpack<std::string>();
    source = args.template unpack<std::string>();
  }
};

// query [*L, n1, d], key [*L, n2, d], target [*L, n1, n2]; mask [*L, n1 | 1, n2 | 1] bool (undefined: all true).
// Gradients and tangents of the first three have the same names; undefined ones are zero.
// What stands for a target that is not dense, a constant:
//   teacher   its queries [*L, n1, e], keys [*L, n2, e] and the statistics of its map [*L, n1, 5]
//   sparse    crow_indices [*L, n1 + 1], col_indices [*L, nnz], values [*L, nnz]
struct MatrixPoint {
  Tensor query, key, target, mask;
  Tensor target_rows = {}, target_columns = {}, target_values = {};
};
inline bool has_teacher(const MatrixSettings& settings) {
  return settings.source == "exp" || settings.source == "cosh" || settings.source == "sinh";
}

// The parameter lists of the schemas in ../library.cpp.
#define RESCALED_MATRIX                                                                       \
  const Tensor &query, const Tensor &key, const MaybeTensor &target, const MaybeTensor &mask, \
      const MaybeTensor &target_rows, const MaybeTensor &target_columns, const MaybeTensor &target_values
#define RESCALED_MATRIX_SETTINGS bool is_causal, c10::string_view kind, c10::string_view form, c10::string_view source
#define RESCALED_MATRIX_TANGENTS \
  const MaybeTensor &tangent_query, const MaybeTensor &tangent_key, const MaybeTensor &tangent_target
#define RESCALED_THE_MATRIX                                                                                \
  MatrixPoint {                                                                                            \
    query, key, defined_or(target), defined_or(mask), defined_or(target_rows), defined_or(target_columns), \
        defined_or(target_values)                                                                          \
  }
#define RESCALED_THE_MATRIX_TANGENTS                                                   \
  MatrixPoint {                                                                        \
    defined_or(tangent_query), defined_or(tangent_key), defined_or(tangent_target), {} \
  }
#define RESCALED_THE_MATRIX_SETTINGS \
  MatrixSettings { is_causal, std::string(kind), std::string(form), std::string(source) }

// The sizes that the leading dimensions of a point's tensors, the same number for each, broadcast to.
inline std::vector<c10::SymInt> leading_sizes(const MatrixPoint& x) {
  const int64_t rank = x.query.dim() - 2;
  const auto suffix = [&](const Tensor& t) { return t.defined() ? t.dim() - rank : 0; };
  return leading_sizes({{x.query, 2},
                        {x.key, 2},
                        {x.target, 2},
                        {x.mask, 2},
                        {x.target_rows, suffix(x.target_rows)},
                        {x.target_columns, suffix(x.target_columns)},
                        {x.target_values, suffix(x.target_values)}});
}

}  // namespace rescaled::ops
