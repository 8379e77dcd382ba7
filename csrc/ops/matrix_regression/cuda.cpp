// SPDX-License-Identifier: BSD-3-Clause
// The passes of a matrix regression on CUDA: kernels on the current stream where they serve, the plain-tensor formulas
// elsewhere. Nothing waits for the device.
#include <torch/library.h>

#include "../../kernels/attention/cuda/attention.h"
#include "../../kernels/matrix_regression/cuda/matrix_regression.h"
#include "../cuda_call.h"
#include "fused.h"

#if !defined(RESCALED_CUDA) && !defined(RESCALED_TWIN)
// Built without nvcc: nothing calls it, because cuda_kernels_serve() says no.
namespace rescaled {
const char* matrix_regression_cuda_run(MatrixPass, const MatrixRegressionParameters&, void*) {
  return "cudaErrorNotSupported";
}
}  // namespace rescaled
#endif

namespace rescaled::ops {
namespace {

struct Cuda {
  static bool serves(const MatrixPoint& x) {
    const bool countable = x.query.size(-2) <= kMostCudaRows && x.key.size(-2) <= kMostCudaRows;
    return countable && cuda_serves(CudaFamily::matrix_regression, x.query.device());
  }
  static void run(const char* op, MatrixPass pass, MatrixRegressionParameters& p, const Tensor& query) {
    const c10::DeviceGuard guard(query.device());
    check_cuda(op, matrix_regression_cuda_run(pass, p, cuda_stream(query.device())));
  }
};

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, RESCALED_CUDA_KEY, m) {
  rescaled::ops::register_matrix_passes<rescaled::ops::Cuda>(m);
}
