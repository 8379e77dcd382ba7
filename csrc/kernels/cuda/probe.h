// SPDX-License-Identifier: BSD-3-Clause
// What the CUDA part of the library is and finds. Compiled only where nvcc is.
#pragma once

namespace rescaled {

// The targets this library was compiled for, e.g. "80-real 90a-real 90-virtual".
const char* cuda_architectures();

// Devices of this machine; 0 without a driver. `error` names what went wrong, or is nullptr.
int cuda_device_count(const char** error);

// Launches a kernel on the current device and its default stream that reports the architecture it was compiled for (900
// for 9.0). The name of the error, or nullptr.
const char* cuda_probe(int* architecture);

}  // namespace rescaled
