// SPDX-License-Identifier: BSD-3-Clause
// Products with A, dense or sparse, as formulas on tensors: any device, differentiable to any order in A's numbers and
// the vectors.
#pragma once
#include <functional>

#include "problem.h"

namespace rescaled::ops {

// A x: [*, n].
Tensor times_vector(const Design& A, const Tensor& x);
// A^T weights: [*, d].
Tensor sum_of_rows(const Design& A, const Tensor& weights);
// The gradient of sum(rows * (A x)) in A's numbers, summed over the leading dimensions along which they are broadcast:
// one product, never larger than A. `full`: the sizes that all leading dimensions broadcast to.
Tensor outer(const Tensor& rows, const Tensor& x, const Design& A, const std::vector<c10::SymInt>& full);

// Calls f(block of A's rows as a dense matrix, first row, their number) for all of them; the number is -1 where the
// block is all of a dense A.
void for_dense_blocks(const Design& A, const std::function<void(const Tensor&, int64_t, int64_t)>& f);

// Some rows: those of `index` [m], int64, or `count` of them from `first` on. Of one problem.
Design selected_rows(const Design& A, const Tensor& index);
Design narrowed_rows(const Design& A, int64_t first, int64_t count);

}  // namespace rescaled::ops
