// SPDX-License-Identifier: BSD-3-Clause
// The regression family on CPU: workspace and threads.
#include <torch/library.h>

#include "../threads.h"
#include "fused.h"

namespace rescaled::ops {
namespace {

struct Cpu {
  static constexpr bool kSparse = true;
  static bool serves(const Tensor&, bool) { return true; }
#define RESCALED_CPU_PASS(name) \
  static void name(RegressionParameters& p, const Tensor&) { execute(regression_cpu_kernels().name(p), p); }
  RESCALED_CPU_PASS(evaluate)
  RESCALED_CPU_PASS(gauss_newton)
  RESCALED_CPU_PASS(product)
  RESCALED_CPU_PASS(matvec)
  RESCALED_CPU_PASS(statistics)
  RESCALED_CPU_PASS(rows)
  RESCALED_CPU_PASS(model)
  RESCALED_CPU_PASS(curvature)
#undef RESCALED_CPU_PASS
};

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) { rescaled::ops::register_regression<rescaled::ops::Cpu>(m); }
