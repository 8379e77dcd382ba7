// SPDX-License-Identifier: BSD-3-Clause
#include "group.h"

#include "../ops/dispatch.h"

namespace torch_rescaled::solvers {

Tensor Group::reduced(const Tensor& t, const char* operation) const {
  if (single()) return t;
  using AllReduce = Tensor(const Tensor& input, std::string operation, std::string group);
  using Wait = Tensor(const Tensor& input);
  static const auto all_reduce = rescaled::ops::handle<AllReduce>("_c10d_functional::all_reduce");
  static const auto wait = rescaled::ops::handle<Wait>("_c10d_functional::wait_tensor");
  return wait.call(all_reduce.call(t.contiguous(), operation, name_));
}

}  // namespace torch_rescaled::solvers
