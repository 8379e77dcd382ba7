// SPDX-License-Identifier: BSD-3-Clause
// The processes of a torch.distributed group, each of which has a part of the rows. What these return is the same on
// all of them.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

namespace torch_rescaled::solvers {

using at::Tensor;

class Group {
 public:
  explicit Group(std::string name = "") : name_(std::move(name)) {}
  bool single() const { return name_.empty(); }
  Tensor sum(const Tensor& t) const { return reduced(t, "sum"); }
  Tensor largest(const Tensor& t) const { return reduced(t, "max"); }
  // [processes, ...], in the order of their ranks.
  Tensor gathered(const Tensor& t) const;

 private:
  Tensor reduced(const Tensor& t, const char* operation) const;
  std::string name_;          // as torch.distributed knows it; empty: this process alone
  mutable int64_t size_ = 0;  // 0: not asked for yet
};

}  // namespace torch_rescaled::solvers
