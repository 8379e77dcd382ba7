// SPDX-License-Identifier: BSD-3-Clause
// The regression family on CUDA devices, for a caller that knows no CUDA. Compiled only where nvcc is.
#pragma once
#include "../parameters.h"

namespace rescaled {

enum class RegressionPass { evaluate, gauss_newton, product, matvec, statistics, rows, model, curvature };

// Device memory that one call needs, for RegressionParameters::workspace.
int64_t regression_cuda_workspace_bytes(RegressionPass, const RegressionParameters&);

// Enqueues the pass on `stream` (a cudaStream_t) of the current device; nothing waits for it. The name of the error, or
// nullptr. Every tensor of the parameters lies on that device; none of the sizes is 0.
const char* regression_cuda_run(RegressionPass, const RegressionParameters&, void* stream);

}  // namespace rescaled
