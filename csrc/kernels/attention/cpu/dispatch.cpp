// SPDX-License-Identifier: BSD-3-Clause
#include "../../cpu/isa.h"
#include "../parameters.h"
#include "few.h"

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
RESCALED_DECLARE(avx512_bf16)
RESCALED_DECLARE(amx_bf16)

namespace {

// All four primitives of one problem agree, so that they form the same scores.
bool in_pairs(const AttentionParameters& p) { return p.query.dtype == DType::bfloat16 && p.queries > kFewQueries; }
template <AttentionProgram (*kPairs)(const AttentionParameters&),
          AttentionProgram (*kOthers)(const AttentionParameters&)>
AttentionProgram by_type(const AttentionParameters& p) {
  return in_pairs(p) ? kPairs(p) : kOthers(p);
}

}  // namespace
#define RESCALED_PAIR_KERNELS(isa)                                                                                   \
  {by_type<isa::attention_forward, avx512::attention_forward>,                                                       \
   by_type<isa::attention_forward_jvp, avx512::attention_forward_jvp>,                                               \
   by_type<isa::attention_jvp, avx512::attention_jvp>, by_type<isa::attention_backward, avx512::attention_backward>, \
   by_type<isa::attention_double_backward, avx512::attention_double_backward>}
#endif

const AttentionKernels& attention_cpu_kernels() {
  static const AttentionKernels kernels = [] {
    switch (cpu_isa()) {
#if defined(__x86_64__)
      case Isa::amx_bf16:
        return AttentionKernels RESCALED_PAIR_KERNELS(amx_bf16);
      case Isa::avx512_bf16:
        return AttentionKernels RESCALED_PAIR_KERNELS(avx512_bf16);
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
