// SPDX-License-Identifier: BSD-3-Clause
// The passes of a matrix regression on CUDA devices, for a caller that knows no CUDA. Compiled only where nvcc is.
#pragma once
#include "../parameters.h"

namespace rescaled {

// Enqueues the pass on `stream` (a cudaStream_t) of the current device; nothing waits for it. The name of the error, or
// nullptr. Every tensor of the parameters lies on that device; there are at most kMostCudaRows rows and columns.
//
// Components of a sparse target are not looked at before: a row whose indices do not ascend within the map gets
// statistics of NaN, and what lies outside is not read.
const char* matrix_regression_cuda_run(MatrixPass, const MatrixRegressionParameters&, void* stream);

}  // namespace rescaled
