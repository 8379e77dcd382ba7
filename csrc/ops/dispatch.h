// SPDX-License-Identifier: BSD-3-Clause
// What every operator needs: calls through the dispatcher, optional tensors, the type of the arithmetic.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <initializer_list>
#include <optional>
#include <utility>
#include <vector>

namespace rescaled::ops {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;

template <class Signature>
c10::TypedOperatorHandle<Signature> handle(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Absent optional tensors are undefined ones here.
inline Tensor defined_or(const MaybeTensor& t) { return t.value_or(Tensor()); }
inline MaybeTensor maybe(const Tensor& t) { return t.defined() ? MaybeTensor(t) : std::nullopt; }

// float64 for float64, else float32: the type of the arithmetic, and of what is never returned in half precision.
inline at::ScalarType accumulation_type(const Tensor& t) {
  return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Views with one more dimension in front, until there are `rank`.
inline Tensor with_rank(Tensor t, int64_t rank) {
  while (t.defined() && t.dim() < rank) t = t.unsqueeze(0);
  return t;
}

// The sizes that leading dimensions broadcast to, aligned at the right; with each tensor how many dimensions follow
// them.
inline std::vector<c10::SymInt> leading_sizes(std::initializer_list<std::pair<const Tensor&, int64_t>> tensors) {
  std::vector<c10::SymInt> full;
  for (const auto& [t, suffix] : tensors) {
    if (!t.defined()) continue;
    const int64_t rank = t.dim() - suffix, missing = rank - static_cast<int64_t>(full.size());
    if (missing > 0) full.insert(full.begin(), missing, c10::SymInt(1));
    for (int64_t i = 1; i <= rank; ++i)
      if (t.sym_size(rank - i) != 1) full[full.size() - i] = t.sym_size(rank - i);
  }
  return full;
}

// What an output that `need` does not ask for is.
inline Tensor none(const Tensor& like) { return at::empty({0}, like.options()); }
// A gradient of the size of its input; where that is absent or its gradient not wanted, as `none` of `like`.
inline Tensor finished(bool wanted, const Tensor& gradient, const Tensor& input, const Tensor& like) {
  if (!wanted || !input.defined()) return none(like);
  return gradient.defined() ? gradient.contiguous() : at::zeros_symint(input.sym_sizes(), input.options());
}

}  // namespace rescaled::ops
