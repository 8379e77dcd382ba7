// SPDX-License-Identifier: BSD-3-Clause
// Sums over the processes of a torch.distributed group, each of which has a part of the rows.
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

 private:
  Tensor reduced(const Tensor& t, const char* operation) const;
  std::string name_;  // as torch.distributed knows it; empty: this process alone
};

}  // namespace torch_rescaled::solvers
