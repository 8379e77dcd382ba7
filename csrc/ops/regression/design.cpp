// SPDX-License-Identifier: BSD-3-Clause
#include "design.h"

#include <ATen/ExpandUtils.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>

namespace rescaled::ops {
namespace {

using Sizes = std::vector<c10::SymInt>;

Sizes join(Sizes sizes, const c10::SymInt& last) {
  sizes.push_back(last);
  return sizes;
}

// Row and column of every value, int64 [*, nnz], and the leading sizes of a product with a vector.
struct Indices {
  Tensor row, column;
  Sizes full;
  Indices(const Design& A, const Tensor& vector) {
    const auto& [crow, col, columns] = A.pattern;
    full = leading_sizes({{A.A, 1}, {crow, 1}, {col, 1}, {vector, 1}});
    const Sizes sizes = join(full, A.A.sym_size(-1));
    column = col.to(at::kLong).expand_symint(sizes);
    const Tensor ends = crow.slice(-1, 1).contiguous();
    Sizes of_ends;
    for (const c10::SymInt& size : ends.sym_sizes().slice(0, static_cast<size_t>(ends.dim()) - 1))
      of_ends.push_back(size);
    const Tensor each =
        at::arange(A.A.sym_size(-1), ends.options()).expand_symint(join(of_ends, A.A.sym_size(-1))).contiguous();
    row = at::searchsorted(ends, each, /*out_int32=*/false, /*right=*/true).expand_symint(sizes);
  }
  Tensor taken(const Tensor& vector, const Tensor& index) const {
    return vector.expand_symint(join(full, vector.sym_size(-1))).gather(-1, index);
  }
  Tensor added(const Tensor& values, const Tensor& index, const c10::SymInt& size) const {
    return at::zeros_symint(join(full, size), values.options()).scatter_add(-1, index, values);
  }
};

}  // namespace

Tensor times_vector(const Design& A, const Tensor& x) {
  if (!A.sparse()) return at::matmul(A.A, x.unsqueeze(-1)).squeeze(-1);
  const Indices at(A, x);
  return at.added(A.A * at.taken(x, at.column), at.row, A.rows());
}

Tensor sum_of_rows(const Design& A, const Tensor& weights) {
  if (!A.sparse()) return at::matmul(weights.unsqueeze(-2), A.A).squeeze(-2);
  const Indices at(A, weights);
  return at.added(A.A * at.taken(weights, at.row), at.column, A.columns());
}

Tensor outer(const Tensor& rows, const Tensor& x, const Design& design, const std::vector<c10::SymInt>& full) {
  const Tensor& A = design.A;
  if (design.sparse()) {
    const Indices of_rows(design, rows), of_x(design, x);
    return (of_rows.taken(rows, of_rows.row) * of_x.taken(x, of_x.column)).sum_to_size_symint(A.sym_sizes());
  }
  const int64_t rank = static_cast<int64_t>(full.size());
  std::vector<int64_t> rows_order, x_order, summed;
  for (int64_t d = 0; d < rank; ++d) (A.sym_size(d) == 1 ? summed : rows_order).push_back(d);
  x_order = rows_order;
  rows_order.push_back(rank);
  rows_order.insert(rows_order.end(), summed.begin(), summed.end());
  x_order.insert(x_order.end(), summed.begin(), summed.end());
  x_order.push_back(rank);
  const auto expanded = [&](const Tensor& t) { return t.expand_symint(join(full, t.sym_size(-1))); };
  const int64_t kept = rank - static_cast<int64_t>(summed.size()), last = rank;
  Tensor left = expanded(rows).permute(rows_order), right = expanded(x).permute(x_order);
  if (summed.empty())
    left = left.unsqueeze(-1), right = right.unsqueeze(-2);
  else
    left = left.flatten(kept + 1, last), right = right.flatten(kept, last - 1);
  return at::matmul(left, right).reshape_symint(A.sym_sizes());
}

Design selected_rows(const Design& A, const Tensor& index) {
  if (!A.sparse()) return {A.A.index_select(0, index)};
  const auto& [crow, col, columns] = A.pattern;
  const Tensor begins = crow.index_select(0, index), counts = crow.index_select(0, index + 1) - begins;
  const Tensor ends = counts.cumsum(0), first = at::zeros({1}, ends.options());
  const Tensor from =
      (begins - (ends - counts)).repeat_interleave(counts) + at::arange(ends[-1].item<int64_t>(), ends.options());
  return {A.A.index_select(0, from),
          {at::cat({first, ends}).to(crow.scalar_type()), col.index_select(0, from), columns}};
}

Design narrowed_rows(const Design& A, int64_t first, int64_t count) {
  if (!A.sparse()) return {A.A.narrow(0, first, count)};
  const auto& [crow, col, columns] = A.pattern;
  const Tensor rows = crow.narrow(0, first, count + 1);
  const int64_t begin = rows[0].item<int64_t>(), length = rows[-1].item<int64_t>() - begin;
  return {A.A.narrow(0, begin, length), {rows - begin, col.narrow(0, begin, length), columns}};
}

void for_dense_blocks(const Design& A, const std::function<void(const Tensor&, int64_t, int64_t)>& f) {
  constexpr int64_t kBlock = 1 << 24;  // numbers
  if (!A.sparse()) return f(A.A, 0, -1);
  const c10::SymInt n = A.rows(), d = A.columns();
  const Indices at(A, {});
  const Tensor values = A.A.expand_symint(at.row.sym_sizes());
  const auto dense = [&](const Tensor& row, const c10::SymInt& rows) {
    return at.added(values, row * d + at.column, rows * d).reshape_symint(join(join(at.full, rows), d));
  };
  // Whole where its size is not known: no loop in a traced graph.
  if (n.is_symbolic() || d.is_symbolic()) return f(dense(at.row, n), 0, -1);
  const int64_t rows = n.expect_int(), most = std::max<int64_t>(kBlock / std::max<int64_t>(d.expect_int(), 1), 1);
  for (int64_t first = 0; first < rows || first == 0; first += most) {
    const int64_t count = std::min(rows - first, most);
    // What belongs to other rows goes to one that is not looked at.
    const Tensor local = at.row - first, row = at::where((local >= 0).logical_and(local < count), local, count);
    f(dense(row, count + 1).narrow(-2, 0, count), first, count);
  }
}

}  // namespace rescaled::ops
