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
  // For compiled autograd: what it must specialize on, and what travels through its graph.
  template <class Arguments>
  void collect(Arguments& args) const {
    args.collect(is_causal);
    args.collect(kind);
    args.collect(form);
  }
  template <class Arguments>
  void pack(Arguments& args) const {
    args.pack(is_causal);
    args.pack(kind);
    args.pack(form);
  }
  template <class Arguments>
  void unpack(Arguments& args) {
    is_causal = args.template unpack<bool>();
    kind = args.template unpack<std::string>();
    form = args.template unpack<std::string>();
  }
};

// query [*L, n1, d], key [*L, n2, d], target [*L, n1, n2]; mask [*L, n1 | 1, n2 | 1] bool (undefined: all true).
// Gradients and tangents of the first three have the same names; undefined ones are zero.
struct MatrixPoint {
  Tensor query, key, target, mask;
};

// The parameter lists of the schemas in ../library.cpp.
#define RESCALED_MATRIX const Tensor &query, const Tensor &key, const Tensor &target, const MaybeTensor &mask
#define RESCALED_MATRIX_SETTINGS bool is_causal, c10::string_view kind, c10::string_view form
#define RESCALED_MATRIX_TANGENTS \
  const MaybeTensor &tangent_query, const MaybeTensor &tangent_key, const MaybeTensor &tangent_target
#define RESCALED_THE_MATRIX \
  MatrixPoint { query, key, target, defined_or(mask) }
#define RESCALED_THE_MATRIX_TANGENTS                                                   \
  MatrixPoint {                                                                        \
    defined_or(tangent_query), defined_or(tangent_key), defined_or(tangent_target), {} \
  }
#define RESCALED_THE_MATRIX_SETTINGS \
  MatrixSettings { is_causal, std::string(kind), std::string(form) }

// The sizes that the leading dimensions of a point's tensors broadcast to, aligned at the right.
inline std::vector<c10::SymInt> leading_sizes(const MatrixPoint& x) {
  return leading_sizes({{x.query, 2}, {x.key, 2}, {x.target, 2}, {x.mask, 2}});
}

}  // namespace rescaled::ops
