// SPDX-License-Identifier: BSD-3-Clause
#pragma once

namespace rescaled::ops {

// Is this thread inside `attention` or `attention_with_normalizer`? A graph traced by torch.compile is not.
bool inside_public_attention();

}  // namespace rescaled::ops
