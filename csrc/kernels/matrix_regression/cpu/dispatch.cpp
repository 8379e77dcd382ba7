// SPDX-License-Identifier: BSD-3-Clause
#include "../../cpu/isa.h"
#include "../parameters.h"

namespace rescaled {

#define RESCALED_DECLARE(isa)                                                                    \
  namespace isa {                                                                                \
  MatrixRegressionProgram matrix_regression_statistics(const MatrixRegressionParameters&);       \
  MatrixRegressionProgram matrix_regression_gradient(const MatrixRegressionParameters&);         \
  MatrixRegressionProgram matrix_regression_moments(const MatrixRegressionParameters&);          \
  MatrixRegressionProgram matrix_regression_product(const MatrixRegressionParameters&);          \
  MatrixRegressionProgram matrix_regression_tangents(const MatrixRegressionParameters&);         \
  MatrixRegressionProgram matrix_regression_gradient_tangent(const MatrixRegressionParameters&); \
  MatrixRegressionProgram matrix_regression_columns(const MatrixRegressionParameters&);          \
  MatrixRegressionProgram matrix_regression_elements(const MatrixRegressionParameters&);         \
  }
#define RESCALED_KERNELS(isa)                                                                                   \
  {isa::matrix_regression_statistics, isa::matrix_regression_gradient, isa::matrix_regression_moments,          \
   isa::matrix_regression_product,    isa::matrix_regression_tangents, isa::matrix_regression_gradient_tangent, \
   isa::matrix_regression_columns,    isa::matrix_regression_elements}

RESCALED_DECLARE(baseline)
#if defined(__x86_64__)
RESCALED_DECLARE(avx2)
RESCALED_DECLARE(avx512)
#endif

const MatrixRegressionKernels& matrix_regression_cpu_kernels() {
  static const MatrixRegressionKernels kernels = [] {
    switch (cpu_vector_isa()) {
#if defined(__x86_64__)
      case Isa::avx512:
        return MatrixRegressionKernels RESCALED_KERNELS(avx512);
      case Isa::avx2:
        return MatrixRegressionKernels RESCALED_KERNELS(avx2);
#endif
      default:
        return MatrixRegressionKernels RESCALED_KERNELS(baseline);
    }
  }();
  return kernels;
}

}  // namespace rescaled
