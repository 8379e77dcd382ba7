// SPDX-License-Identifier: BSD-3-Clause
// The regression family on CUDA: kernels on the current stream where they serve, the plain-tensor formulas elsewhere.
// Nothing waits for the device.
#include <torch/library.h>

#include "../../kernels/regression/cuda/regression.h"
#include "../cuda_call.h"
#include "fused.h"

#if !defined(RESCALED_CUDA) && !defined(RESCALED_TWIN)
// Built without nvcc: nothing calls these, because cuda_kernels_serve() says no.
namespace rescaled {
int64_t regression_cuda_workspace_bytes(RegressionPass, const RegressionParameters&) { return 0; }
const char* regression_cuda_run(RegressionPass, const RegressionParameters&, void*) { return "cudaErrorNotSupported"; }
}  // namespace rescaled
#endif

namespace rescaled::ops {
namespace {

struct Cuda {
  using Sparse = CsrCuda;
  // Where they do not, the formulas are as right; they read A once for every product with it.
  static bool serves(const Tensor& t, bool is_empty) {
    return !is_empty && cuda_serves(CudaFamily::regression, t.device());
  }
#define RESCALED_CUDA_PASS(name)                                  \
  static void name(RegressionParameters& p, const Tensor& like) { \
    run("_regression_" #name, RegressionPass::name, p, like);     \
  }
  RESCALED_CUDA_PASS(evaluate)
  RESCALED_CUDA_PASS(gauss_newton)
  RESCALED_CUDA_PASS(product)
  RESCALED_CUDA_PASS(matvec)
  RESCALED_CUDA_PASS(statistics)
  RESCALED_CUDA_PASS(rows)
  RESCALED_CUDA_PASS(model)
  RESCALED_CUDA_PASS(curvature)
#undef RESCALED_CUDA_PASS

 private:
  // The workspace may be given back at once: the allocator hands it on in the order of the stream.
  static void run(const char* op, RegressionPass pass, RegressionParameters& p, const Tensor& like) {
    const c10::DeviceGuard guard(like.device());
    const Tensor workspace = at::empty({regression_cuda_workspace_bytes(pass, p)}, like.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
    check_cuda(op, regression_cuda_run(pass, p, cuda_stream(like.device())));
  }
};

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, RESCALED_CUDA_KEY, m) { rescaled::ops::register_regression<rescaled::ops::Cuda>(m); }
