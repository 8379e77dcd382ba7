// SPDX-License-Identifier: BSD-3-Clause
// Products with a sparse A on CUDA devices, for a caller that knows no CUDA. Compiled only where nvcc is.
#pragma once
#include "../../regression/csr.h"

namespace rescaled {

enum class CsrPass { matvec, transposed, curvature };

// Device memory that one call needs, for CsrParameters::workspace.
int64_t csr_cuda_workspace_bytes(CsrPass, const CsrParameters&);

// Enqueues the pass on `stream` (a cudaStream_t) of the current device; nothing waits for it, so that nothing can be
// said of an index that leads outside: it is not followed, and what would depend on it is NaN (CsrParameters::wrong is
// not used). The name of the error, or nullptr. Every tensor of the parameters lies on that device.
const char* csr_cuda_run(CsrPass, const CsrParameters&, void* stream);

}  // namespace rescaled
