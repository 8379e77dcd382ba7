// SPDX-License-Identifier: BSD-3-Clause
// A regression whose A is sparse, by rows: values, their columns, and where each row begins. No torch, no Python.
#pragma once
#include "parameters.h"

namespace rescaled {

// `A` are the values [., nonzeros], contiguous as the indices are.
struct CsrParameters : RegressionParameters {
  const void *crow = nullptr, *col = nullptr;  // [., n + 1], [., nonzeros]: int64_t if wide, else int32_t
  int64_t crow_batch[kMaxBatchRank] = {}, col_batch[kMaxBatchRank] = {};
  bool wide = false;
  int64_t nonzeros = 0;
  int32_t* wrong = nullptr;  // set to 1 where an index leads outside; what stands in the outputs then means nothing
  Input weights;             // [., K, n]
  int64_t weights_count = 0;
  bool squared = false;
  Output sums;  // [., K, d]
};
using CsrProgram = Program<CsrParameters>;

// As those of a dense A, without gauss_newton.
struct CsrKernels {
  CsrProgram (*evaluate)(const CsrParameters&);
  CsrProgram (*product)(const CsrParameters&);
  CsrProgram (*matvec)(const CsrParameters&);
  CsrProgram (*curvature)(const CsrParameters&);
  CsrProgram (*transposed)(const CsrParameters&);  // A^T weights, or of the squares of A's values
};
const CsrKernels& csr_cpu_kernels();

}  // namespace rescaled
