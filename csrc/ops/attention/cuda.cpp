// SPDX-License-Identifier: BSD-3-Clause
// CUDA tensors are refused, by the checks' one text, until there are kernels for them.
#include <torch/library.h>

#include "checks.h"

namespace rescaled::ops {
namespace {

[[noreturn]] void unreachable() {
  TORCH_INTERNAL_ASSERT(false, "torch_rescaled: the checks let a CUDA tensor through");
}

Three forward(RESCALED_POINT, RESCALED_SETTINGS) {
  check_point("_attention_forward", RESCALED_THE_POINT, RESCALED_THE_SETTINGS);
  unreachable();
}
Four backward(RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS, std::array<bool, 4>) {
  check_backward(RESCALED_THE_POINT, RESCALED_THE_COTANGENTS, RESCALED_THE_SAVED, RESCALED_THE_SETTINGS);
  unreachable();
}
Three jvp(RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS) {
  check_jvp(RESCALED_THE_POINT, RESCALED_THE_TANGENTS, RESCALED_THE_SAVED, RESCALED_THE_SETTINGS);
  unreachable();
}
Seven double_backward(RESCALED_TANGENTS, RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS,
                      std::array<bool, 7>) {
  check_double_backward(RESCALED_THE_POINT, RESCALED_THE_TANGENTS, RESCALED_THE_COTANGENTS, RESCALED_THE_SAVED,
                        RESCALED_THE_SETTINGS);
  unreachable();
}
Tensor dropout_mask(const Tensor& dropout_seed, int64_t queries, int64_t keys, double dropout_p) {
  check_dropout_mask(dropout_seed, queries, keys, dropout_p);
  unreachable();
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CUDA, m) {
  m.impl("_attention_forward", TORCH_FN(rescaled::ops::forward));
  m.impl("_attention_backward", TORCH_FN(rescaled::ops::backward));
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward));
  m.impl("_attention_dropout_mask", TORCH_FN(rescaled::ops::dropout_mask));
}
