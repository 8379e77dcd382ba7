// SPDX-License-Identifier: BSD-3-Clause
// What every operator needs: calls through the dispatcher, optional tensors, the type of the arithmetic.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>

#include <optional>

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

// What an output that `need` does not ask for is.
inline Tensor none(const Tensor& like) { return at::empty({0}, like.options()); }

}  // namespace rescaled::ops
