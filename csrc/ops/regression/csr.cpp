// SPDX-License-Identifier: BSD-3-Clause
#include "csr.h"

#include <ATen/ops/empty.h>

#include "../threads.h"
#include "checks.h"
#include "csr_call.h"
#include "plain.h"

namespace rescaled::ops {
namespace {

void run(const char* op, CsrCall& call, CsrProgram (*kernel)(const CsrParameters&)) {
  if (call.problems.empty()) return;
  int32_t wrong = 0;
  call.p.wrong = &wrong;
  execute(kernel(call.p), call.p);
  if (wrong != 0) check_indices(op, call.point.design());
}

}  // namespace

std::tuple<Tensor, Tensor> CsrCpu::evaluate(const RegressionPoint& x, const RegressionSettings& settings) {
  CsrCall call(x.design(), x);
  const Tensor statistics = at::empty(call.problems.full({RegressionStatistics::count}), wide(x.A)),
               gradient = at::empty(call.problems.full({call.p.columns}), wide(x.A));
  set(call.p, settings.kind, settings.form);
  call.p.statistics = call.problems.output(statistics, 1), call.p.vector = call.problems.output(gradient, 1);
  run("_regression_evaluate", call, csr_cpu_kernels().evaluate);
  return {statistics, gradient};
}

Tensor CsrCpu::product(const RegressionPoint& x, const Tensor& v, const RegressionSettings& settings,
                       c10::string_view curvature) {
  CsrCall call(x.design(), x);
  const Tensor scaled = at::empty(call.problems.full({call.p.columns}), wide(x.A)),
               statistics = at::empty(call.problems.full({RegressionStatistics::count}), wide(x.A));
  set(call.p, settings.kind, settings.form);
  call.p.curvature = curvature_of(curvature), call.p.v = call.problems.input(v, 1);
  call.p.vector = call.problems.output(scaled, 1), call.p.statistics = call.problems.output(statistics, 1);
  run("_regression_product", call, csr_cpu_kernels().product);
  return unscaled(scaled, statistics.select(-1, RegressionStatistics::log_scale)).to(accumulation_type(x.A));
}

Tensor CsrCpu::matvec(const Design& A, const Tensor& v) {
  return with_matvec(A, v, [](CsrCall& call) { run("_regression_matvec", call, csr_cpu_kernels().matvec); });
}

Tensor CsrCpu::transposed(const Design& A, const Tensor& weights, bool squared) {
  return with_transposed(A, weights, squared,
                         [](CsrCall& call) { run("_regression_transposed", call, csr_cpu_kernels().transposed); });
}

std::tuple<Tensor, Tensor, Tensor> CsrCpu::curvature(const Design& A, const Tensor& rows, const Tensor& statistics,
                                                     c10::string_view curvature) {
  return with_curvature(A, rows, statistics, curvature,
                        [](CsrCall& call) { run("_regression_curvature", call, csr_cpu_kernels().curvature); });
}

}  // namespace rescaled::ops
