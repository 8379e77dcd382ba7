// SPDX-License-Identifier: BSD-3-Clause
// The layout of outputs. A projection [.., N, heads D] seen as [.., heads, N, D] has its heads beside each other; what
// belongs to it is laid out alike, so that going back is a view, and the layers around attention copy nothing.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>

#include <vector>

namespace rescaled::ops {

using at::Tensor;

// The dimensions in the order of memory: the rows stand outside those leading dimensions that change faster in `like`,
// and outside those after them that `like` has one of, as the value has one for the queries of a group.
inline std::vector<int64_t> memory_order(const Tensor& like) {
  const int64_t rank = like.dim(), rows = rank - 2;
  std::vector<int64_t> outside, inside;
  for (int64_t d = 0; d < rows; ++d) {
    const bool one = like.sym_size(d) == 1 || like.sym_stride(d) == 0;
    const bool faster = one ? !inside.empty() : like.sym_size(rows) != 1 && like.sym_stride(d) < like.sym_stride(rows);
    (faster ? inside : outside).push_back(d);
  }
  outside.push_back(rows);
  outside.insert(outside.end(), inside.begin(), inside.end());
  outside.push_back(rank - 1);
  return outside;
}

// What the output is laid out as: the query, or the value where the query's rows are outermost (as turning it by rotary
// positions leaves them).
inline const Tensor& output_guide(const Tensor& query, const Tensor& value) {
  return memory_order(query)[query.dim() - 2] == query.dim() - 2 ? value : query;
}

inline std::vector<int64_t> inverse(const std::vector<int64_t>& order) {
  std::vector<int64_t> back(order.size());
  for (size_t i = 0; i < order.size(); ++i) back[order[i]] = static_cast<int64_t>(i);
  return back;
}

// Dense, of these sizes [.., rows, columns] (as many dimensions as `like` has), laid out as `like` is.
inline Tensor empty_laid_out(const std::vector<c10::SymInt>& sizes, const Tensor& like,
                             const at::TensorOptions& options) {
  const std::vector<int64_t> order = memory_order(like);
  std::vector<c10::SymInt> in_memory;
  for (const int64_t d : order) in_memory.push_back(sizes[d]);
  return at::empty_symint(in_memory, options).permute(inverse(order));
}
inline Tensor empty_laid_out(const std::vector<int64_t>& sizes, const Tensor& like, const at::TensorOptions& options) {
  return empty_laid_out(std::vector<c10::SymInt>(sizes.begin(), sizes.end()), like, options);
}

// The same tensor, laid out so.
inline Tensor laid_out(const Tensor& t, const Tensor& like) {
  const std::vector<int64_t> order = memory_order(like);
  return t.permute(order).contiguous().permute(inverse(order));
}

}  // namespace rescaled::ops
