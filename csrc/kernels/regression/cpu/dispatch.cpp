// SPDX-License-Identifier: BSD-3-Clause
#include "../../cpu/isa.h"
#include "../parameters.h"
#include "transposed.h"

namespace rescaled {

#define RESCALED_DECLARE(isa)                                                         \
  namespace isa {                                                                     \
  RegressionProgram regression_evaluate(const RegressionParameters&);                 \
  RegressionProgram regression_gauss_newton(const RegressionParameters&);             \
  RegressionProgram regression_product(const RegressionParameters&);                  \
  RegressionProgram regression_matvec(const RegressionParameters&);                   \
  RegressionProgram regression_statistics(const RegressionParameters&);               \
  RegressionProgram regression_rows(const RegressionParameters&);                     \
  RegressionProgram regression_model(const RegressionParameters&);                    \
  RegressionProgram regression_curvature(const RegressionParameters&);                \
  RegressionProgram regression_transposed(const RegressionParameters&, bool squared); \
  }
#define RESCALED_KERNELS(isa)                                                                                 \
  {isa::regression_evaluate,   isa::regression_gauss_newton, isa::regression_product, isa::regression_matvec, \
   isa::regression_statistics, isa::regression_rows,         isa::regression_model,   isa::regression_curvature}

RESCALED_DECLARE(baseline)
#if defined(__x86_64__)
RESCALED_DECLARE(avx2)
RESCALED_DECLARE(avx512)
#endif

const RegressionKernels& regression_cpu_kernels() {
  static const RegressionKernels kernels = [] {
    switch (cpu_vector_isa()) {
#if defined(__x86_64__)
      case Isa::avx512:
        return RegressionKernels RESCALED_KERNELS(avx512);
      case Isa::avx2:
        return RegressionKernels RESCALED_KERNELS(avx2);
#endif
      default:
        return RegressionKernels RESCALED_KERNELS(baseline);
    }
  }();
  return kernels;
}

RegressionProgram regression_cpu_transposed(const RegressionParameters& p, bool squared) {
  switch (cpu_vector_isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512::regression_transposed(p, squared);
    case Isa::avx2:
      return avx2::regression_transposed(p, squared);
#endif
    default:
      return baseline::regression_transposed(p, squared);
  }
}

}  // namespace rescaled
