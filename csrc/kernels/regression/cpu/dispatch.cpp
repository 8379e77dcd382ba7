// SPDX-License-Identifier: BSD-3-Clause
#include "../../cpu/isa.h"
#include "../csr.h"
#include "../parts.h"
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
  RegressionProgram regression_part_evaluate(const RegressionParameters&);            \
  RegressionProgram regression_part_statistics(const RegressionParameters&);          \
  RegressionProgram regression_part_gram(const RegressionParameters&);                \
  CsrProgram csr_evaluate(const CsrParameters&);                                      \
  CsrProgram csr_product(const CsrParameters&);                                       \
  CsrProgram csr_matvec(const CsrParameters&);                                        \
  CsrProgram csr_curvature(const CsrParameters&);                                     \
  CsrProgram csr_transposed(const CsrParameters&);                                    \
  RegressionProgram regression_transposed(const RegressionParameters&, bool squared); \
  }
#define RESCALED_KERNELS(isa)                                                                                \
  RegressionKernels {                                                                                        \
    isa::regression_evaluate, isa::regression_gauss_newton, isa::regression_product, isa::regression_matvec, \
        isa::regression_statistics, isa::regression_rows, isa::regression_model, isa::regression_curvature   \
  }
#define RESCALED_PART_KERNELS(isa) \
  RegressionPartKernels { isa::regression_part_evaluate, isa::regression_part_statistics, isa::regression_part_gram }
#define RESCALED_CSR_KERNELS(isa) \
  CsrKernels { isa::csr_evaluate, isa::csr_product, isa::csr_matvec, isa::csr_curvature, isa::csr_transposed }

RESCALED_DECLARE(baseline)
#if defined(__x86_64__)
RESCALED_DECLARE(avx2)
RESCALED_DECLARE(avx512)
#endif

// The table of this processor's instruction set.
#if defined(__x86_64__)
#define RESCALED_CHOSEN(kernels) \
  cpu_vector_isa() == Isa::avx512 ? kernels(avx512) : cpu_vector_isa() == Isa::avx2 ? kernels(avx2) : kernels(baseline)
#else
#define RESCALED_CHOSEN(kernels) kernels(baseline)
#endif
const RegressionKernels& regression_cpu_kernels() {
  static const RegressionKernels kernels = RESCALED_CHOSEN(RESCALED_KERNELS);
  return kernels;
}
const CsrKernels& csr_cpu_kernels() {
  static const CsrKernels kernels = RESCALED_CHOSEN(RESCALED_CSR_KERNELS);
  return kernels;
}
const RegressionPartKernels& regression_part_cpu_kernels() {
  static const RegressionPartKernels kernels = RESCALED_CHOSEN(RESCALED_PART_KERNELS);
  return kernels;
}

RegressionProgram regression_cpu_transposed(const RegressionParameters& p, bool squared) {
#define RESCALED_TRANSPOSED(isa) &isa::regression_transposed
  static const auto kernel = RESCALED_CHOSEN(RESCALED_TRANSPOSED);
  return kernel(p, squared);
}

}  // namespace rescaled
