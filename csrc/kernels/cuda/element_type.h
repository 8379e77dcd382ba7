// SPDX-License-Identifier: BSD-3-Clause
// The launch for an element type that is known when the program runs.
#pragma once
#include "../element.h"
#include "../matrices.h"

namespace rescaled {

// Calls f with an element of the type.
template <class Function>
const char* with_element_type(DType dtype, Function f) {
  switch (dtype) {
    case DType::float32:
      return f(float{});
    case DType::float64:
      return f(double{});
    case DType::bfloat16:
      return f(BFloat16{});
    default:
      return f(Float16{});
  }
}

}  // namespace rescaled
