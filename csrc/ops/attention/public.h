// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include "checks.h"

namespace rescaled::ops {

// (W, balance, log_normalizer) of a public operator, its arguments checked in its name.
Saved attention_core(const char* op, const PublicArguments&);
// W of sinh to u V / (u 1) = W / balance, with a pole where balance = 0; a row without keys is 0, and so are its
// derivatives.
Tensor divided_by_balance(const Tensor& output, const Saved&);

// Is this thread inside a public operator? A graph traced by torch.compile is not.
bool inside_public_attention();

}  // namespace rescaled::ops
