// SPDX-License-Identifier: BSD-3-Clause
#include "group.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

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

}  // namespace torch_rescaled::solvers
