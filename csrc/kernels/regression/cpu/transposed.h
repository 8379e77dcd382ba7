// SPDX-License-Identifier: BSD-3-Clause
// A^T W for a few vectors of n numbers, on CPU alone.
#pragma once
#include "../parameters.h"

namespace rescaled {

// resident_rows [., steps_count, n] in the type of the arithmetic -> vector [., steps_count, d], in the same.
// `squared`: of A's elements squared.
RegressionProgram regression_cpu_transposed(const RegressionParameters&, bool squared);

}  // namespace rescaled
