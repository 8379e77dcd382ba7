// SPDX-License-Identifier: BSD-3-Clause
// The regression family of a sparse A on CUDA: products with A and A^T by kernels of their own, the rest by those of a
// dense A, which see vectors alone. Nothing waits for the device.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../../kernels/regression_csr/cuda/regression_csr.h"
#include "../cuda_call.h"
#include "checks.h"
#include "csr.h"
#include "csr_call.h"
#include "plain.h"

#if !defined(RESCALED_CUDA) && !defined(RESCALED_TWIN)
// Built without nvcc: nothing calls these, because cuda_kernels_serve() says no.
namespace rescaled {
int64_t csr_cuda_workspace_bytes(CsrPass, const CsrParameters&) { return 0; }
const char* csr_cuda_run(CsrPass, const CsrParameters&, void*) { return "cudaErrorNotSupported"; }
}  // namespace rescaled
#endif

namespace rescaled::ops {
namespace {

bool serves(const Design& A) { return cuda_serves(CudaFamily::regression_csr, A.A.device()); }

// The workspace may be given back at once: the allocator hands it on in the order of the stream.
void run(const char* op, CsrCall& call, CsrPass pass) {
  if (call.problems.empty()) return;
  const Tensor& values = call.point.A;
  const c10::DeviceGuard guard(values.device());
  const Tensor workspace = at::empty({csr_cuda_workspace_bytes(pass, call.p)}, values.options().dtype(at::kByte));
  call.p.workspace = workspace.mutable_data_ptr();
  check_cuda(op, csr_cuda_run(pass, call.p, cuda_stream(values.device())));
}

// Where a row has this share of all columns, products of dense blocks are faster than pairs of values.
bool is_nearly_dense(const Design& A) {
  const double rows = static_cast<double>(A.rows().expect_int()),
               columns = static_cast<double>(A.columns().expect_int());
  const double per_row = rows > 0 ? static_cast<double>(A.A.size(-1)) / rows : 0;
  return 32 * per_row * per_row > columns * columns;
}

}  // namespace

std::tuple<Tensor, Tensor> CsrCuda::evaluate(const RegressionPoint& x, const RegressionSettings& settings) {
  return plain_regression_evaluate(x, settings);
}
Tensor CsrCuda::product(const RegressionPoint& x, const Tensor& v, const RegressionSettings& settings,
                        c10::string_view curvature) {
  return plain_regression_product(x, v, settings, curvature);
}
Tensor CsrCuda::matvec(const Design& A, const Tensor& v) {
  if (!serves(A)) return plain_regression_matvec(A, v);
  return with_matvec(A, v, [](CsrCall& call) { run("_regression_matvec", call, CsrPass::matvec); });
}
Tensor CsrCuda::transposed(const Design& A, const Tensor& weights, bool squared) {
  if (!serves(A)) return plain_regression_transposed(A, weights, squared);
  return with_transposed(A, weights, squared,
                         [](CsrCall& call) { run("_regression_transposed", call, CsrPass::transposed); });
}
std::tuple<Tensor, Tensor, Tensor> CsrCuda::curvature(const Design& A, const Tensor& rows, const Tensor& statistics,
                                                      c10::string_view curvature) {
  if (!serves(A) || is_nearly_dense(A)) return plain_regression_curvature(A, rows, statistics, curvature);
  return with_curvature(A, rows, statistics, curvature,
                        [](CsrCall& call) { run("_regression_curvature", call, CsrPass::curvature); });
}

static Tensor transposed(const Tensor& A, const Tensor& weights, bool squared, RESCALED_PATTERN,
                         c10::SymInt n_columns) {
  const Design design{A, pattern_of(crow_indices, col_indices, n_columns)};
  check_regression_transposed(design, weights);
  return design.sparse() ? CsrCuda::transposed(design, weights, squared)
                         : plain_regression_transposed(design, weights, squared);
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, RESCALED_CUDA_KEY, m) {
  m.impl("_regression_transposed", TORCH_FN(rescaled::ops::transposed));
}
