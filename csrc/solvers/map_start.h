// SPDX-License-Identifier: BSD-3-Clause
// Starting points of the map solvers, from the target: docs/solver.md.
#pragma once
#include "attention_objective.h"
#include "matrix_objective.h"

namespace torch_rescaled::solvers {

// Numbers from -1 to 1 without a pattern, the same everywhere; those from the `first` on.
Tensor scattered(int64_t size, int64_t first = 0);
// Of the normalized or plain objective; X as a vector.
Tensor matrix_start(const MatrixObjective&, const MatrixData&, const MatrixSettings&);
// Of an objective without Y among its unknowns.
Tensor attention_start(const AttentionObjective&, const AttentionData&);

}  // namespace torch_rescaled::solvers
