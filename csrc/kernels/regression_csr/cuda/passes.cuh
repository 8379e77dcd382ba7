// SPDX-License-Identifier: BSD-3-Clause
// The steps of the passes on the host, put together by run.cu. Each enqueues kernels and returns the name of an error,
// or nullptr.
#pragma once
#include "../../cuda/device.cuh"
#include "../../cuda/element_type.h"
#include "regression_csr.h"

namespace rescaled {

constexpr int kThreads = 256;

// What the columns' sums are of: values, or their squares, times a number of the row.
enum class Source {
  given,     // p.weights, or noise of resident rows
  sides,     // gradient, p, q of resident rows
  diagonal,  // of resident rows: sums of squares, of which only the codes are asked for
};

constexpr int kMostVectors = 4;  // of a pass over A

// Where the sums of a pass are in the workspace, and how a block walks its rows.
struct WalkPlan {
  int lanes = 1;                           // that share a row
  int64_t chunks = 1, chunk_rows = 0;      // blocks of a problem
  int room = 0;                            // logarithm of the number of a sum's terms
  int slots = 0;                           // of the table in shared memory, 0: none
  int64_t first = 0;                       // vector
  bool resident = false, squared = false;  // of Source::given
  int vectors = 1;
  // Offsets: [batches], [batches], [batches][columns][width], [.][.][.][words]
  int64_t wrong = 0, longest = 0, codes = 0, sums = 0;
  int64_t sides = 0;  // of a curvature: float64 [batches][3][columns]
};
RESCALED_HOST_DEVICE int width_of(int vectors) { return vectors == 1 ? 1 : kMostVectors; }
RESCALED_HOST_DEVICE int words_of(DType dtype) { return dtype == DType::float64 ? 2 : 1; }

template <class T>
RESCALED_HOST_DEVICE T* workspace_at(const CsrParameters& p, int64_t offset) {
  return reinterpret_cast<T*>(static_cast<char*>(p.workspace) + offset);
}

const char* csr_clear(const CsrParameters&, int64_t offset, int64_t bytes, void* stream);
const char* csr_matvec(const CsrParameters&, const WalkPlan&, void* stream);
// The codes of the sums alone.
const char* csr_bounds(const CsrParameters&, const WalkPlan&, Source, void* stream);
// The sums, given their codes, and what is written of them.
const char* csr_sums(const CsrParameters&, const WalkPlan&, Source, void* stream);
// The Hessian, given the codes of the diagonal's sums and the sides.
const char* csr_gram(const CsrParameters&, const WalkPlan&, int64_t gram, void* stream);

// Calls f(an element, an index) of the types that A's values and indices have.
template <class Function>
const char* with_types(const CsrParameters& p, Function f) {
  return with_element_type(p.A.dtype,
                           [&](auto element) { return p.wide ? f(element, int64_t{}) : f(element, int32_t{}); });
}

}  // namespace rescaled
