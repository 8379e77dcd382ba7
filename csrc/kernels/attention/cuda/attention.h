// SPDX-License-Identifier: BSD-3-Clause
// The attention family on CUDA devices, for a caller that knows no CUDA. Compiled only where nvcc is.
#pragma once
#include "../parameters.h"

namespace rescaled {

// Queries, and keys, of one problem: they are counted in 32 bits.
inline constexpr int64_t kMostCudaRows = int64_t{1} << 30;

// Device memory that one call needs, for AttentionParameters::workspace.
int64_t attention_cuda_workspace_bytes(Primitive, const AttentionParameters&);

// Enqueues the primitive on `stream` (a cudaStream_t) of the current device; nothing waits for it. The name of the
// error, or nullptr. Every tensor of the parameters lies on that device; none of the sizes is 0 but `keys`.
const char* attention_cuda_run(Primitive, const AttentionParameters&, void* stream);

// The same for the mask of dropout: `count` matrices [queries, keys] of true (kept) and false.
const char* attention_cuda_dropout_mask(const int64_t* seeds, int64_t count, int64_t queries, int64_t keys,
                                        double dropout_p, bool* to, void* stream);

}  // namespace rescaled
