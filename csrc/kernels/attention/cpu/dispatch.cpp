// SPDX-License-Identifier: BSD-3-Clause
#include "../../cpu/isa.h"
#include "../parameters.h"

namespace rescaled {

#define RESCALED_DECLARE(isa)                                             \
  namespace isa {                                                         \
  AttentionProgram attention_forward(const AttentionParameters&);         \
  AttentionProgram attention_forward_jvp(const AttentionParameters&);     \
  AttentionProgram attention_jvp(const AttentionParameters&);             \
  AttentionProgram attention_backward(const AttentionParameters&);        \
  AttentionProgram attention_double_backward(const AttentionParameters&); \
  }
#define RESCALED_KERNELS(isa)                                                                       \
  {isa::attention_forward, isa::attention_forward_jvp, isa::attention_jvp, isa::attention_backward, \
   isa::attention_double_backward}

RESCALED_DECLARE(baseline)
#if defined(__x86_64__)
RESCALED_DECLARE(avx2)
RESCALED_DECLARE(avx512)
#endif

const AttentionKernels& attention_cpu_kernels() {
  static const AttentionKernels kernels = [] {
    switch (cpu_isa()) {
#if defined(__x86_64__)
      case Isa::avx512:
        return AttentionKernels RESCALED_KERNELS(avx512);
      case Isa::avx2:
        return AttentionKernels RESCALED_KERNELS(avx2);
#endif
      default:
        return AttentionKernels RESCALED_KERNELS(baseline);
    }
  }();
  return kernels;
}

}  // namespace rescaled
