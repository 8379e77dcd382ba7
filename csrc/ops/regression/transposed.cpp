// SPDX-License-Identifier: BSD-3-Clause
// A^T weights as a call, and by plain tensor formulas for devices without a kernel of their own.
#include <ATen/TensorOperators.h>
#include <ATen/ops/matmul.h>
#include <torch/library.h>

#include "checks.h"
#include "design.h"
#include "plain.h"
#include "resident.h"

namespace rescaled::ops {

using TransposedSignature = Tensor(const Tensor& A, const Tensor& weights, bool squared, RESCALED_PATTERN,
                                   c10::SymInt n_columns);

Tensor plain_regression_transposed(const Design& design, const Tensor& weights, bool squared) {
  constexpr int64_t kBlock = 1 << 22;  // elements of A in the type of the arithmetic at a time
  const Tensor& A = design.A;
  const at::ScalarType type = accumulation_type(A);
  if (design.sparse()) {
    const auto& [crow, col, columns] = design.pattern;
    const Tensor values = A.to(type);  // of every vector
    return sum_of_rows(
        {(squared ? values.square() : values).unsqueeze(-2), {crow.unsqueeze(-2), col.unsqueeze(-2), columns}},
        weights);
  }
  if (A.scalar_type() == type && !squared) return at::matmul(weights, A);
  std::vector<c10::SymInt> sizes = leading_sizes({{A, 2}, {weights, 2}});
  sizes.insert(sizes.end(), {weights.sym_size(-2), A.sym_size(-1)});
  const c10::SymInt n = A.sym_size(-2), elements = A.sym_numel();
  Tensor sum = at::zeros_symint(sizes, weights.options());
  // Whole where it is small, or its size not known: no loop in a traced graph.
  const bool whole = elements.is_symbolic() || elements.expect_int() <= kBlock;
  const int64_t count = whole ? 1 : (elements.expect_int() + kBlock - 1) / kBlock;
  const c10::SymInt rows = whole ? n : (n + count - 1) / count;
  for (int64_t i = 0; i < count; ++i) {
    Tensor a = whole ? A : A.slice_symint(-2, i * rows, (i + 1) * rows);
    a = a.to(type);
    if (squared) a = a.square();
    sum = sum + at::matmul(whole ? weights : weights.slice_symint(-1, i * rows, (i + 1) * rows), a);
  }
  return sum;
}

Tensor regression_transposed(const Design& A, const Tensor& weights, bool squared) {
  static const auto op = handle<TransposedSignature>("torch_rescaled::_regression_transposed");
  return op.call(A.A, weights, squared, maybe(A.pattern.crow_indices), maybe(A.pattern.col_indices), A.columns());
}

static Tensor checked_transposed(const Tensor& A, const Tensor& weights, bool squared, RESCALED_PATTERN,
                                 c10::SymInt n_columns) {
  const Design design{A, pattern_of(crow_indices, col_indices, n_columns)};
  check_regression_transposed(design, weights);
  return plain_regression_transposed(design, weights, squared);
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  m.impl("_regression_transposed", TORCH_FN(rescaled::ops::checked_transposed));
}
