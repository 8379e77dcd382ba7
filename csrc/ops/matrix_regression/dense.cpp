// SPDX-License-Identifier: BSD-3-Clause
// Targets that are not dense, formed for the plain formulas.
#include <ATen/TensorOperators.h>
#include <ATen/ops/_assert_async.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/full.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/take.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include "../regression/rows.h"
#include "plain.h"

namespace rescaled::ops {
namespace {

Tensor of_teacher(const MatrixPoint& x, const Tensor& mask, const std::string& kind) {
  const Tensor scores = at::matmul(x.target_rows, x.target_columns.transpose(-2, -1));
  return row_values({scores, at::zeros_like(scores), {}, {}, mask}, {kind, "normalized"}).u;
}

// Of all rows, or of those of this index.
Tensor of_components(const MatrixPoint& x, const Tensor& rows = {}) {
  const c10::SymInt n1 = x.query.sym_size(-2), n2 = x.key.sym_size(-2), stored = x.target_values.sym_size(-1);
  std::vector<c10::SymInt> full = leading_sizes({{x.target_rows, 1}, {x.target_columns, 1}, {x.target_values, 1}});
  const auto of = [&](c10::SymInt last) {
    std::vector<c10::SymInt> sizes = full;
    sizes.push_back(std::move(last));
    return sizes;
  };
  const Tensor crow = x.target_rows.expand_symint(of(n1 + 1)).contiguous(),
               columns = x.target_columns.expand_symint(of(stored)), values = x.target_values.expand_symint(of(stored));
  const Tensor position = at::arange(stored, crow.options()).expand_symint(of(stored)).contiguous();
  const Tensor row = at::searchsorted(crow.narrow_symint(-1, 1, n1), position, /*out_int32=*/false, /*right=*/true);
  const Tensor inside = (columns >= 0).logical_and(columns < n2).logical_and(row < n1);
  at::_assert_async(inside.all(),
                    "torch_rescaled::_matrix_regression_statistics: expected crow_indices and col_indices "
                    "within the target");
  if (!rows.defined()) {
    std::vector<c10::SymInt> matrix = of(n1);
    matrix.push_back(n2);
    return at::zeros_symint(of(n1 * n2), values.options())
        .scatter_add(-1, row * n2 + columns, values)
        .view_symint(matrix);
  }
  // What belongs to other rows goes to one behind the last.
  const c10::SymInt count = rows.sym_size(0);
  const Tensor place = at::arange(count, rows.options()),
               among = at::full_symint({n1}, count, rows.options()).index_copy(0, rows, place);
  std::vector<c10::SymInt> matrix = of(count + 1);
  matrix.push_back(n2);
  return at::zeros_symint(of((count + 1) * n2), values.options())
      .scatter_add(-1, at::take(among, row) * n2 + columns, values)
      .view_symint(matrix)
      .narrow_symint(-2, 0, count);
}

}  // namespace

Tensor dense_target(const MatrixPoint& x, const Tensor& logits, const Tensor& mask, const MatrixSettings& settings) {
  if (has_teacher(settings)) return of_teacher(x, mask, settings.source);
  if (settings.source == "sparse") return of_components(x);
  return settings.source == "zero" ? at::zeros_like(logits) : x.target;
}

MatrixPoint rows_of(const MatrixPoint& x, const Tensor& rows, MatrixSettings& settings) {
  const auto some = [&](const Tensor& t) {
    return t.defined() && t.sym_size(-2) == x.query.sym_size(-2) ? t.index_select(-2, rows) : t;
  };
  MatrixPoint out{some(x.query), x.key, some(x.target), some(x.mask)};
  if (settings.is_causal) {
    const Tensor causal = at::arange(x.key.sym_size(-2), rows.options()).unsqueeze(0) <= rows.unsqueeze(-1);
    out.mask = out.mask.defined() ? out.mask.logical_and(causal) : causal;
    settings.is_causal = false;
  }
  if (has_teacher(settings)) {
    out.target_rows = some(x.target_rows), out.target_columns = x.target_columns;
    out.target_values = some(x.target_values);
  } else if (settings.source == "sparse") {
    out.target = of_components(x, rows);
    settings.source = "dense";
  }
  return out;
}

}  // namespace rescaled::ops
