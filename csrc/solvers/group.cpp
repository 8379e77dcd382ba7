// SPDX-License-Identifier: BSD-3-Clause
#include "group.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>
#include <ATen/ops/ones.h>

namespace torch_rescaled::solvers {

Tensor Group::reduced(const Tensor& t, const char* operation) const {
  if (single()) return t;
  // Boxed: the group's name is a string up to torch 2.12, and anything from 2.13 on.
  static const auto all_reduce = c10::Dispatcher::singleton().findSchemaOrThrow("_c10d_functional::all_reduce", "");
  static const auto wait = c10::Dispatcher::singleton().findSchemaOrThrow("_c10d_functional::wait_tensor", "");
  c10::Stack stack = {t.contiguous(), std::string(operation), name_};
  all_reduce.callBoxed(stack);
  wait.callBoxed(stack);
  return stack.back().toTensor();
}

Tensor Group::gathered(const Tensor& t) const {
  if (single()) return t.unsqueeze(0);
  static const auto gather =
      c10::Dispatcher::singleton().findSchemaOrThrow("_c10d_functional::all_gather_into_tensor", "");
  static const auto wait = c10::Dispatcher::singleton().findSchemaOrThrow("_c10d_functional::wait_tensor", "");
  if (size_ == 0) size_ = sum(at::ones({1}, t.options())).item().toLong();
  c10::Stack stack = {t.contiguous().flatten(), size_, name_};
  gather.callBoxed(stack);
  wait.callBoxed(stack);
  std::vector<int64_t> sizes = t.sizes().vec();
  sizes.insert(sizes.begin(), size_);
  return stack.back().toTensor().view(sizes);
}

}  // namespace torch_rescaled::solvers
