// SPDX-License-Identifier: BSD-3-Clause
// Tensors to kernel parameters: leading dimensions and strides. Nothing here knows the device.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "../kernels/matrices.h"

namespace rescaled::ops {

using at::Tensor;

inline DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return DType::float32;
    case at::kDouble:
      return DType::float64;
    case at::kBFloat16:
      return DType::bfloat16;
    case at::kHalf:
      return DType::float16;
    case at::kLong:
      return DType::int64;
    default:
      return DType::boolean;
  }
}

inline std::vector<int64_t> concrete(const std::vector<c10::SymInt>& sizes) {
  std::vector<int64_t> out;
  for (const c10::SymInt& size : sizes) out.push_back(size.expect_int());
  return out;
}

// The leading dimensions of a problem's tensors, each its size or 1, and the order in which kernels walk them.
class Batch {
 public:
  bool empty() const { return std::find(full_.begin(), full_.end(), 0) != full_.end(); }
  std::vector<int64_t> full(at::IntArrayRef suffix) const { return join(full_, suffix); }
  int64_t count() const {
    int64_t n = 1;
    for (const int64_t size : full_) n *= size;
    return n;
  }

  // `suffix`: dimensions after the leading ones (2 matrix, 1 vector, 0 number). Broadcast dimensions get stride 0.
  Input input(const Tensor& t, int64_t suffix) const {
    Input m;
    if (!t.defined()) return m;
    strides(t, suffix, m);
    m.data = t.const_data_ptr();
    if (!m.data) m.data = this;  // an empty tensor is there, and never read
    return m;
  }
  Output output(const Tensor& t, int64_t suffix) const {
    Output m;
    if (!t.defined()) return m;
    strides(t, suffix, m);
    m.data = t.mutable_data_ptr();
    return m;
  }
  template <class Parameters>
  void set_sizes(Parameters& p) const {
    p.rank = static_cast<int>(order_.size());
    for (int i = 0; i < p.rank; ++i) p.sizes[i] = full_[order_[i]];
  }

 protected:
  explicit Batch(std::vector<int64_t> full) : full_(std::move(full)) {}
  static std::vector<int64_t> join(std::vector<int64_t> sizes, at::IntArrayRef suffix) {
    sizes.insert(sizes.end(), suffix.begin(), suffix.end());
    return sizes;
  }
  std::vector<int64_t> full_, order_;

 private:
  template <class Pointer>
  void strides(const Tensor& t, int64_t suffix, Matrices<Pointer>& m) const {
    const int64_t rank = static_cast<int64_t>(full_.size());
    m.dtype = dtype_of(t);
    for (size_t i = 0; i < order_.size(); ++i) m.batch[i] = t.size(order_[i]) == 1 ? 0 : t.stride(order_[i]);
    if (suffix > 0) m.row = t.size(rank) == 1 ? 0 : t.stride(rank);
    if (suffix > 1) m.column = t.size(rank + 1) == 1 ? 0 : t.stride(rank + 1);
  }
};

}  // namespace rescaled::ops
