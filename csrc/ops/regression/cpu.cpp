// SPDX-License-Identifier: BSD-3-Clause
// The regression family on CPU: workspace and threads.
#include <torch/library.h>

#include "../../kernels/regression/cpu/transposed.h"
#include "../threads.h"
#include "fused.h"

namespace rescaled::ops {
namespace {

struct Cpu {
  using Sparse = CsrCpu;
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

Tensor transposed(const Tensor& A, const Tensor& weights, bool squared, RESCALED_PATTERN, c10::SymInt n_columns) {
  const Design design{A, pattern_of(crow_indices, col_indices, n_columns)};
  check_regression_transposed(design, weights);
  if (design.sparse()) return CsrCpu::transposed(design, weights, squared);
  const int64_t count = weights.size(-2);
  if (count == 0) return plain_regression_transposed(design, weights, squared);
  const Problems problems({A, weights.select(-2, 0), {}, {}, {}});
  RegressionParameters p = problems.parameters();
  set(p, problems, {A, {}, {}, {}, {}});
  p.steps_count = count;
  const Tensor out = at::empty(problems.full({count, p.columns}), weights.options());
  p.resident_rows = problems.input(weights, 2), p.vector = problems.output(out, 2);
  if (!problems.empty()) execute(regression_cpu_transposed(p, squared), p);
  return out;
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) {
  rescaled::ops::register_regression<rescaled::ops::Cpu>(m);
  m.impl("_regression_transposed", TORCH_FN(rescaled::ops::transposed));
}
