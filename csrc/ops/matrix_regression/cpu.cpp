// SPDX-License-Identifier: BSD-3-Clause
// Matrix regression kernels on CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../../kernels/matrix_regression/parameters.h"
#include "../batch.h"
#include "../threads.h"
#include "checks.h"
#include "primitives.h"

namespace rescaled::ops {
namespace {

// All leading dimensions, each a tensor's size or 1, in their order.
class Problems : public Batch {
 public:
  Problems(const MatrixPoint& x, const Tensor& direction)
      : Batch(concrete(leading_sizes({{x.query, 2}, {x.key, 2}, {x.target, 2}, {x.mask, 2}, {direction, 2}}))) {
    for (size_t d = 0; d < full_.size(); ++d)
      if (full_[d] != 1) order_.push_back(static_cast<int64_t>(d));
  }
};

struct Call {
  Problems problems;
  MatrixRegressionParameters p;
  at::TensorOptions options;
  Call(const MatrixPoint& x, const MatrixSettings& settings, const Tensor& direction = {})
      : problems(x, direction), options(x.query.options()) {
    AttentionParameters& s = p.scores;
    problems.set_sizes(s);
    s.kind = settings.kind == "exp" ? Kind::exp : settings.kind == "cosh" ? Kind::cosh : Kind::sinh;
    p.form = settings.form == "rescaled"     ? Form::rescaled
             : settings.form == "normalized" ? Form::normalized
                                             : Form::plain;
    s.causal = settings.is_causal;
    s.queries = x.query.size(-2), s.keys = x.key.size(-2), s.head_size = x.query.size(-1);
    s.kv_batches = problems.count();
    s.query = problems.input(x.query, 2), s.key = problems.input(x.key, 2), s.mask = problems.input(x.mask, 2);
    p.target = problems.input(x.target, 2);
    p.direction = problems.input(direction, 2);
  }
  void with_values() { p.scores.value = p.scores.key, p.scores.value_size = p.scores.head_size; }
  Tensor output(int64_t columns, Output& to) {
    const Tensor t = at::empty(problems.full({p.scores.queries, columns}), options);
    to = problems.output(t, 2);
    return t;
  }
  void run(MatrixRegressionProgram (*kernel)(const MatrixRegressionParameters&)) {
    if (!problems.empty() && p.scores.queries > 0) execute(kernel(p), p);
  }
};

Tensor statistics_of(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS) {
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_point("_matrix_regression_statistics", point, RESCALED_THE_MATRIX_SETTINGS);
  Call call(point, RESCALED_THE_MATRIX_SETTINGS);
  const Tensor out = call.output(MatrixRegressionStatistics::count, call.p.statistics);
  call.run(matrix_regression_cpu_kernels().statistics);
  return out;
}

Tensor gradient(RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_gradient";
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_point(op, point, RESCALED_THE_MATRIX_SETTINGS);
  check_matrix_rows(op, "statistics", point, statistics, MatrixRegressionStatistics::count);
  Call call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_values();
  call.p.saved_statistics = call.problems.input(statistics, 2);
  const Tensor out = call.output(query.size(-1), call.p.rows);
  call.run(matrix_regression_cpu_kernels().gradient);
  return out;
}

Two moments(RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS, bool full) {
  const char* op = "_matrix_regression_moments";
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_point(op, point, RESCALED_THE_MATRIX_SETTINGS);
  check_matrix_rows(op, "statistics", point, statistics, MatrixRegressionStatistics::count);
  Call call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_values();
  call.p.full = full;
  call.p.saved_statistics = call.problems.input(statistics, 2);
  const Tensor p = call.output(query.size(-1), call.p.rows), q = call.output(query.size(-1), call.p.others);
  call.run(matrix_regression_cpu_kernels().moments);
  return {p, q};
}

Tensor product(RESCALED_MATRIX, const Tensor& statistics, const Tensor& moment_p, const Tensor& moment_q,
               const Tensor& direction, RESCALED_MATRIX_SETTINGS, bool full) {
  const char* op = "_matrix_regression_product";
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_point(op, point, RESCALED_THE_MATRIX_SETTINGS);
  check_matrix_rows(op, "statistics", point, statistics, MatrixRegressionStatistics::count);
  check_matrix_rows(op, "moment_p", point, moment_p, query.sym_size(-1));
  check_matrix_rows(op, "moment_q", point, moment_q, query.sym_size(-1));
  check_matrix_rows(op, "direction", point, direction, query.sym_size(-1));
  Call call(point, RESCALED_THE_MATRIX_SETTINGS, direction);
  call.with_values();
  call.p.full = full;
  call.p.saved_statistics = call.problems.input(statistics, 2);
  call.p.moment_p = call.problems.input(moment_p, 2), call.p.moment_q = call.problems.input(moment_q, 2);
  const Tensor out = call.output(query.size(-1), call.p.rows);
  call.run(matrix_regression_cpu_kernels().product);
  return out;
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) {
  using namespace rescaled::ops;
  m.impl("_matrix_regression_statistics", TORCH_FN(statistics_of));
  m.impl("_matrix_regression_gradient", TORCH_FN(gradient));
  m.impl("_matrix_regression_moments", TORCH_FN(moments));
  m.impl("_matrix_regression_product", TORCH_FN(product));
}
