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

// Where the values of a sparse A stand, by rows; without indices A is dense.
struct Pattern {
  Tensor crow_indices, col_indices;  // [*L, n + 1], [*L, nnz], int32 or int64
  c10::SymInt n_columns = 0;
  bool sparse() const { return crow_indices.defined() || col_indices.defined(); }
};

// Without either of the indices: dense.
inline Pattern pattern_of(const MaybeTensor& crow_indices, const MaybeTensor& col_indices, c10::SymInt n_columns) {
  if (!crow_indices.has_value() && !col_indices.has_value()) return {};
  return {defined_or(crow_indices), defined_or(col_indices), std::move(n_columns)};
}
inline c10::SymInt length_of(const Tensor& x) { return x.dim() > 0 ? x.sym_size(-1) : c10::SymInt(0); }

// A [*L, n, d], or its values [*L, nnz]; without a copy.
struct Design {
  Tensor A;
  Pattern pattern = {};
  bool sparse() const { return pattern.sparse(); }
  int64_t suffix() const { return sparse() ? 1 : 2; }  // dimensions of `A` after the leading ones
  c10::SymInt rows() const { return sparse() ? pattern.crow_indices.sym_size(-1) - 1 : A.sym_size(-2); }
  c10::SymInt columns() const { return sparse() ? pattern.n_columns : A.sym_size(-1); }
};

// A [*L, n, d] or the values of a sparse one, b [*L, n], x [*L, d], row_weight [*L, n] (undefined: 1), penalty_weight
// [*L, n] (undefined: 0). Gradients and tangents of them have the same names; undefined ones are zero.
struct RegressionPoint {
  Tensor A, b, x, row_weight, penalty_weight;
  Pattern pattern = {};
  Design design() const { return {A, pattern}; }
};

// The parameter lists of the schemas in ../library.cpp.
#define RESCALED_REGRESSION \
  const Tensor &A, const Tensor &b, const Tensor &x, const MaybeTensor &row_weight, const MaybeTensor &penalty_weight
#define RESCALED_REGRESSION_SETTINGS c10::string_view kind, c10::string_view form
#define RESCALED_PATTERN const MaybeTensor &crow_indices, const MaybeTensor &col_indices
// With as many columns as `x` has numbers.
#define RESCALED_THE_PATTERN(x) pattern_of(crow_indices, col_indices, length_of(x))
#define RESCALED_REGRESSION_TANGENTS                                                        \
  const MaybeTensor &tangent_A, const MaybeTensor &tangent_b, const MaybeTensor &tangent_x, \
      const MaybeTensor &tangent_row_weight, const MaybeTensor &tangent_penalty_weight
#define RESCALED_TARGET const Tensor &b, const MaybeTensor &row_weight, const MaybeTensor &penalty_weight
#define RESCALED_THE_REGRESSION \
  RegressionPoint { A, b, x, defined_or(row_weight), defined_or(penalty_weight), RESCALED_THE_PATTERN(x) }
#define RESCALED_THE_REGRESSION_TANGENTS                                                                 \
  RegressionPoint {                                                                                      \
    defined_or(tangent_A), defined_or(tangent_b), defined_or(tangent_x), defined_or(tangent_row_weight), \
        defined_or(tangent_penalty_weight)                                                               \
  }
#define RESCALED_THE_REGRESSION_SETTINGS \
  RegressionSettings { std::string(kind), std::string(form) }

// A point's tensors with the same number of leading dimensions.
inline RegressionPoint aligned(const RegressionPoint& x, int64_t leading) {
  const Pattern& pattern = x.pattern;
  return {
      with_rank(x.A, leading + x.design().suffix()),
      with_rank(x.b, leading + 1),
      with_rank(x.x, leading + 1),
      with_rank(x.row_weight, leading + 1),
      with_rank(x.penalty_weight, leading + 1),
      {with_rank(pattern.crow_indices, leading + 1), with_rank(pattern.col_indices, leading + 1), pattern.n_columns}};
}

// The sizes that the leading dimensions of a point's tensors broadcast to, aligned at the right.
std::vector<c10::SymInt> leading_sizes(const RegressionPoint&);

}  // namespace rescaled::ops
