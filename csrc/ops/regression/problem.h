// SPDX-License-Identifier: BSD-3-Clause
// A regression problem as the operators see it: min over x of the loss of u(A x) against b (docs/math.md (7)).
#pragma once
#include <array>
#include <string>
#include <tuple>
#include <vector>

#include "../dispatch.h"

namespace rescaled::ops {

struct RegressionSettings {
  std::string kind = "exp", form = "rescaled";
  // For compiled autograd: what it must specialize on, and what travels through its graph.
  template <class Arguments>
  void collect(Arguments& args) const {
    args.collect(kind);
    args.collect(form);
  }
  template <class Arguments>
  void pack(Arguments& args) const {
    args.pack(kind);
    args.pack(form);
  }
  template <class Arguments>
  void unpack(Arguments& args) {
    kind = args.template unpack<std::string>();
    form = args.template unpack<std::string>();
  }
};

// A [*L, n, d], b [*L, n], x [*L, d], row_weight [*L, n] (undefined: 1), penalty_weight [*L, n] (undefined: 0).
// Gradients and tangents of them have the same names; undefined ones are zero.
struct RegressionPoint {
  Tensor A, b, x, row_weight, penalty_weight;
};

// The parameter lists of the schemas in ../library.cpp.
#define RESCALED_REGRESSION \
  const Tensor &A, const Tensor &b, const Tensor &x, const MaybeTensor &row_weight, const MaybeTensor &penalty_weight
#define RESCALED_REGRESSION_SETTINGS c10::string_view kind, c10::string_view form
#define RESCALED_REGRESSION_TANGENTS                                                        \
  const MaybeTensor &tangent_A, const MaybeTensor &tangent_b, const MaybeTensor &tangent_x, \
      const MaybeTensor &tangent_row_weight, const MaybeTensor &tangent_penalty_weight
#define RESCALED_TARGET const Tensor &b, const MaybeTensor &row_weight, const MaybeTensor &penalty_weight
#define RESCALED_THE_REGRESSION \
  RegressionPoint { A, b, x, defined_or(row_weight), defined_or(penalty_weight) }
#define RESCALED_THE_REGRESSION_TANGENTS                                                                 \
  RegressionPoint {                                                                                      \
    defined_or(tangent_A), defined_or(tangent_b), defined_or(tangent_x), defined_or(tangent_row_weight), \
        defined_or(tangent_penalty_weight)                                                               \
  }
#define RESCALED_THE_REGRESSION_SETTINGS \
  RegressionSettings { std::string(kind), std::string(form) }

// A point's tensors with the same number of leading dimensions.
inline RegressionPoint aligned(const RegressionPoint& x, int64_t leading) {
  return {with_rank(x.A, leading + 2), with_rank(x.b, leading + 1), with_rank(x.x, leading + 1),
          with_rank(x.row_weight, leading + 1), with_rank(x.penalty_weight, leading + 1)};
}

// The sizes that the leading dimensions of a point's tensors broadcast to, aligned at the right.
std::vector<c10::SymInt> leading_sizes(const RegressionPoint&);

}  // namespace rescaled::ops
