// SPDX-License-Identifier: BSD-3-Clause
#include "pass.cuh"

namespace rescaled {

const char* regression_gradient_pass(const RegressionParameters& p, const PassPlan& plan, void* stream) {
  return with_element_type(
      p.A.dtype, [&](auto element) { return launch_pass<decltype(element), Vectors::gradient>(p, plan, stream); });
}

}  // namespace rescaled
