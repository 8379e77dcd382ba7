// SPDX-License-Identifier: BSD-3-Clause
#include "kernels.cuh"
#include "matrix_regression.h"

namespace rescaled {

const char* matrix_regression_cuda_run(MatrixPass pass, const MatrixRegressionParameters& p, void* stream) {
  switch (pass) {
    case MatrixPass::statistics:
      return map_statistics(p, stream);
    case MatrixPass::tangents:
    case MatrixPass::gradient_tangent:
      return map_tangents(pass, p, stream);
    case MatrixPass::columns:
      return map_columns(p, stream);
    case MatrixPass::elements:
      return map_elements(p, stream);
    default:
      return map_rows(pass, p, stream);
  }
}

}  // namespace rescaled
