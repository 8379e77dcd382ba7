// SPDX-License-Identifier: BSD-3-Clause
#include "../../cpu/isa.h"
#include "../csr.h"

namespace rescaled {

#define RESCALED_DECLARE(isa)                                             \
  namespace isa {                                                         \
  RegressionProgram regression_evaluate(const RegressionParameters&);     \
  RegressionProgram regression_gauss_newton(const RegressionParameters&); \
  RegressionProgram regression_product(const RegressionParameters&);      \
  RegressionProgram regression_matvec(const RegressionParameters&);       \
  RegressionProgram regression_statistics(const RegressionParameters&);   \
  RegressionProgram regression_rows(const RegressionParameters&);         \
  RegressionProgram regression_model(const RegressionParameters&);        \
  RegressionProgram regression_curvature(const RegressionParameters&);    \
  CsrProgram csr_evaluate(const CsrParameters&);                          \
  CsrProgram csr_product(const CsrParameters&);                           \
  CsrProgram csr_matvec(const CsrParameters&);                            \
  CsrProgram csr_curvature(const CsrParameters&);                         \
  CsrProgram csr_transposed(const CsrParameters&);                        \
  }
#define RESCALED_KERNELS(isa)                                                                                 \
  {isa::regression_evaluate,   isa::regression_gauss_newton, isa::regression_product, isa::regression_matvec, \
   isa::regression_statistics, isa::regression_rows,         isa::regression_model,   isa::regression_curvature}
#define RESCALED_CSR_KERNELS(isa) \
  {isa::csr_evaluate, isa::csr_product, isa::csr_matvec, isa::csr_curvature, isa::csr_transposed}

RESCALED_DECLARE(baseline)
#if defined(__x86_64__)
RESCALED_DECLARE(avx2)
RESCALED_DECLARE(avx512)
#endif

namespace {

// Of this processor's instruction set.
template <class Kernels>
const Kernels& chosen([[maybe_unused]] const Kernels& avx512, [[maybe_unused]] const Kernels& avx2,
                      const Kernels& baseline) {
  switch (cpu_vector_isa()) {
#if defined(__x86_64__)
    case Isa::avx512:
      return avx512;
    case Isa::avx2:
      return avx2;
#endif
    default:
      return baseline;
  }
}

}  // namespace

#if defined(__x86_64__)
#define RESCALED_ALL(Kernels, LIST) chosen<Kernels>(LIST(avx512), LIST(avx2), LIST(baseline))
#else
#define RESCALED_ALL(Kernels, LIST) chosen<Kernels>(LIST(baseline), LIST(baseline), LIST(baseline))
#endif
const RegressionKernels& regression_cpu_kernels() {
  static const RegressionKernels kernels = RESCALED_ALL(RegressionKernels, RESCALED_KERNELS);
  return kernels;
}
const CsrKernels& csr_cpu_kernels() {
  static const CsrKernels kernels = RESCALED_ALL(CsrKernels, RESCALED_CSR_KERNELS);
  return kernels;
}

}  // namespace rescaled
