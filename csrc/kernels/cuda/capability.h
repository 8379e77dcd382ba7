// SPDX-License-Identifier: BSD-3-Clause
// Compiled only where nvcc is.
#pragma once

namespace rescaled {

// The compute capability of a device, 90 for 9.0, asked without making a context; 0 where the runtime cannot tell, and
// then `error` names why.
int cuda_capability(int device, const char** error);

}  // namespace rescaled
