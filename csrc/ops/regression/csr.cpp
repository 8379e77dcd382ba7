// SPDX-License-Identifier: BSD-3-Clause
#include "csr.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <vector>

#include "../../kernels/regression/csr.h"
#include "../threads.h"
#include "checks.h"
#include "parameters.h"
#include "plain.h"

namespace rescaled::ops {
namespace {

// Kernels read the components one after another.
Design contiguous(const Design& A) {
  const auto dense = [](const Tensor& t) { return t.stride(-1) == 1 || t.size(-1) <= 1 ? t : t.contiguous(); };
  return {dense(A.A), {dense(A.pattern.crow_indices), dense(A.pattern.col_indices), A.pattern.n_columns}};
}

// The parameters of a call, and what they point to.
struct Call {
  RegressionPoint point;
  Problems problems;
  CsrParameters p;
  int32_t wrong = 0;

  Call(const Design& A, const RegressionPoint& x) : point(of(A, x)), problems(point) {
    const Pattern& pattern = point.pattern;
    problems.set_sizes(p);
    p.batches = problems.count();
    p.A = problems.input(point.A, 1);
    p.rows = A.rows().expect_int(), p.columns = pattern.n_columns.expect_int(), p.nonzeros = point.A.size(-1);
    set(p, problems, {{}, point.b, point.x, point.row_weight, point.penalty_weight});
    const Input crow = problems.input(pattern.crow_indices, 1), col = problems.input(pattern.col_indices, 1);
    p.crow = crow.data, p.col = col.data;
    std::copy_n(crow.batch, kMaxBatchRank, p.crow_batch), std::copy_n(col.batch, kMaxBatchRank, p.col_batch);
    p.wide = pattern.crow_indices.scalar_type() == at::kLong;
    p.wrong = &wrong;
  }
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  void run(const char* op, CsrProgram (*kernel)(const CsrParameters&)) {
    if (problems.empty()) return;
    execute(kernel(p), p);
    if (wrong != 0) check_indices(op, point.design());
  }

 private:
  static RegressionPoint of(const Design& given, const RegressionPoint& x) {
    const Design A = contiguous(given);
    return {A.A, x.b, x.x, x.row_weight, x.penalty_weight, A.pattern};
  }
};

}  // namespace

std::tuple<Tensor, Tensor> csr_evaluate(const RegressionPoint& x, const RegressionSettings& settings) {
  Call call(x.design(), x);
  const Tensor statistics = at::empty(call.problems.full({RegressionStatistics::count}), wide(x.A)),
               gradient = at::empty(call.problems.full({call.p.columns}), wide(x.A));
  set(call.p, settings.kind, settings.form);
  call.p.statistics = call.problems.output(statistics, 1), call.p.vector = call.problems.output(gradient, 1);
  call.run("_regression_evaluate", csr_cpu_kernels().evaluate);
  return {statistics, gradient};
}

Tensor csr_product(const RegressionPoint& x, const Tensor& v, const RegressionSettings& settings,
                   c10::string_view curvature) {
  Call call(x.design(), x);
  const Tensor scaled = at::empty(call.problems.full({call.p.columns}), wide(x.A)),
               statistics = at::empty(call.problems.full({RegressionStatistics::count}), wide(x.A));
  set(call.p, settings.kind, settings.form);
  call.p.curvature = curvature_of(curvature), call.p.v = call.problems.input(v, 1);
  call.p.vector = call.problems.output(scaled, 1), call.p.statistics = call.problems.output(statistics, 1);
  call.run("_regression_product", csr_cpu_kernels().product);
  return unscaled(scaled, statistics.select(-1, RegressionStatistics::log_scale)).to(accumulation_type(x.A));
}

Tensor csr_matvec(const Design& A, const Tensor& v) {
  Call call(A, {{}, {}, v, {}, {}});
  const Tensor products = at::empty(call.problems.full({call.p.rows}), v.options());
  call.p.v = call.problems.input(v, 1), call.p.products = call.problems.output(products, 1);
  call.run("_regression_matvec", csr_cpu_kernels().matvec);
  return products;
}

Tensor csr_transposed(const Design& A, const Tensor& weights, bool squared) {
  const int64_t count = weights.size(-2);
  if (count == 0) {
    std::vector<int64_t> sizes = weights.sizes().vec();
    sizes.back() = A.columns().expect_int();
    return at::empty(sizes, weights.options());
  }
  Call call(A, {{}, weights.select(-2, 0), {}, {}, {}});
  const Tensor sums = at::empty(call.problems.full({count, call.p.columns}), weights.options());
  call.p.weights = call.problems.input(weights, 2), call.p.weights_count = count, call.p.squared = squared;
  call.p.sums = call.problems.output(sums, 2);
  call.run("_regression_transposed", csr_cpu_kernels().transposed);
  return sums;
}

std::tuple<Tensor, Tensor, Tensor> csr_curvature(const Design& A, const Tensor& rows, const Tensor& statistics,
                                                 c10::string_view curvature) {
  const Tensor vectors = rows.contiguous(), saved = statistics.contiguous();
  Call call(A, {{}, vectors.select(-2, 0), {}, {}, {}});
  const int64_t d = call.p.columns;
  const auto options = A.A.options().dtype(accumulation_type(A.A));
  const Tensor gradient = at::empty(call.problems.full({d}), options),
               hessian = at::empty(call.problems.full({d, d}), options),
               noise = at::empty(call.problems.full({d}), options);
  call.p.curvature = curvature_of(curvature);
  call.p.resident_rows = call.problems.input(vectors, 2), call.p.saved_statistics = call.problems.input(saved, 1);
  call.p.gradient = call.problems.output(gradient, 1), call.p.hessian = call.problems.output(hessian, 2);
  call.p.noise = call.problems.output(noise, 1);
  call.run("_regression_curvature", csr_cpu_kernels().curvature);
  return {gradient, hessian, noise};
}

}  // namespace rescaled::ops
