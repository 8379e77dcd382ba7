// SPDX-License-Identifier: BSD-3-Clause
// The primitives on CPU: workspace and threads.
#include <torch/library.h>

#include "../../kernels/random.h"
#include "../threads.h"
#include "fused.h"

namespace rescaled::ops {
namespace {

struct Cpu {
  static bool serves(const Point&, const Leading&) { return true; }
  static void forward(AttentionParameters& p, const Tensor&) { execute(attention_cpu_kernels().forward(p), p); }
  static constexpr bool kForwardJvp = true;
  static void forward_jvp(AttentionParameters& p, const Tensor&) { execute(attention_cpu_kernels().forward_jvp(p), p); }
  static void jvp(AttentionParameters& p, const Tensor&) { execute(attention_cpu_kernels().jvp(p), p); }
  static void backward(AttentionParameters& p, const Tensor&) { execute(attention_cpu_kernels().backward(p), p); }
  static void double_backward(AttentionParameters& p, const Tensor&) {
    execute(attention_cpu_kernels().double_backward(p), p);
  }

  static bool serves_dropout_mask(const Tensor&) { return true; }
  static void dropout_mask(const Tensor& seeds, int64_t queries, int64_t keys, double dropout_p, Tensor& mask) {
    const int64_t* seed = seeds.const_data_ptr<int64_t>();
    bool* to = mask.mutable_data_ptr<bool>();
    const uint32_t threshold = dropout_threshold(dropout_p);
    for (int64_t b = 0; b < seeds.numel(); ++b)
      for (int64_t i = 0; i < queries; ++i)
        for (int64_t j = 0; j < keys; ++j)
          *to++ =
              dropout_keeps(static_cast<uint32_t>(seed[b]), static_cast<uint32_t>(static_cast<uint64_t>(seed[b]) >> 32),
                            static_cast<uint32_t>(i), static_cast<uint32_t>(j), threshold);
  }
};

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) {
  using rescaled::ops::Cpu;
  m.impl("_attention_forward", TORCH_FN(rescaled::ops::forward<Cpu>));
  m.impl("_attention_backward", TORCH_FN(rescaled::ops::backward<Cpu>));
  m.impl("_attention_forward_jvp", TORCH_FN(rescaled::ops::forward_jvp<Cpu>));
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp<Cpu>));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward<Cpu>));
  m.impl("_attention_dropout_mask", TORCH_FN(rescaled::ops::dropout_mask<Cpu>));
}
