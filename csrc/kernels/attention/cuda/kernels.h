// SPDX-License-Identifier: BSD-3-Clause
// The steps of the primitives on the host, one a file, put together by run.cu. Each enqueues its kernel and returns the
// name of an error, or nullptr.
#pragma once
#include "../../element.h"
#include "../parameters.h"

namespace rescaled {

const char* attention_forward(const AttentionParameters&, void* stream);
const char* attention_jvp(const AttentionParameters&, void* stream);
// What the gradients' walks read of each query (weights.h), into the workspace.
const char* attention_query_numbers(const AttentionParameters&, bool second, void* stream);
const char* attention_gradient_query(const AttentionParameters&, bool second, void* stream);
const char* attention_gradient_key(const AttentionParameters&, bool second, void* stream);
const char* attention_gradient_bias(const AttentionParameters&, bool second, void* stream);

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
