// SPDX-License-Identifier: BSD-3-Clause
// Matrix regression kernels on CPU.
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../../kernels/matrix_regression/parameters.h"
#include "../batch.h"
#include "../check.h"
#include "../threads.h"
#include "checks.h"
#include "primitives.h"

namespace rescaled::ops {
namespace {

// All leading dimensions, each a tensor's size or 1, in their order.
class Problems : public Batch {
 public:
  Problems(const MatrixPoint& x, const Tensor& direction) : Batch(sizes(x, direction)) {
    for (size_t d = 0; d < full_.size(); ++d)
      if (full_[d] != 1) order_.push_back(static_cast<int64_t>(d));
  }

 private:
  static std::vector<int64_t> sizes(const MatrixPoint& x, const Tensor& direction) {
    std::vector<int64_t> full = concrete(leading_sizes(x));
    for (size_t d = 0; direction.defined() && d < full.size(); ++d)
      if (full[d] == 1) full[d] = direction.size(static_cast<int64_t>(d));
    return full;
  }
};

Kind kind_of(const std::string& name) { return name == "exp" ? Kind::exp : name == "cosh" ? Kind::cosh : Kind::sinh; }

struct Call {
  Problems problems;
  MatrixRegressionParameters p;
  at::TensorOptions options;
  Call(const MatrixPoint& x, const MatrixSettings& settings, const Tensor& direction = {})
      : problems(x, direction), options(x.query.options()) {
    AttentionParameters& s = p.scores;
    problems.set_sizes(s);
    s.kind = kind_of(settings.kind);
    p.form = settings.form == "rescaled"     ? Form::rescaled
             : settings.form == "normalized" ? Form::normalized
                                             : Form::plain;
    s.causal = settings.is_causal;
    s.queries = x.query.size(-2), s.keys = x.key.size(-2), s.head_size = x.query.size(-1);
    s.kv_batches = problems.count();
    s.query = problems.input(x.query, 2), s.key = problems.input(x.key, 2), s.mask = problems.input(x.mask, 2);
    set_target(x, settings);
    p.direction = problems.input(direction, 2);
  }
  void set_target(const MatrixPoint& x, const MatrixSettings& settings) {
    const bool sparse = settings.source == "sparse", teacher = has_teacher(settings);
    const int64_t suffix = sparse ? 1 : 2;
    p.target = problems.input(x.target, 2), p.target_rows = problems.input(x.target_rows, suffix);
    p.target_columns = problems.input(x.target_columns, suffix);
    p.target_values = problems.input(x.target_values, suffix);
    p.source = sparse ? Target::sparse : teacher ? Target::teacher : x.target.defined() ? Target::dense : Target::zero;
    if (sparse) p.stored = x.target_values.size(-1);
    if (teacher) p.teacher_kind = kind_of(settings.source), p.teacher_size = x.target_rows.size(-1);
  }
  void with_values() { p.scores.value = p.scores.key, p.scores.value_size = p.scores.head_size; }
  void with_tangents(const MatrixPoint& along) {
    AttentionParameters& s = p.scores;
    s.tangent_query = problems.input(along.query, 2), s.tangent_key = problems.input(along.key, 2);
    p.tangent_target = problems.input(along.target, 2);
  }
  Tensor output(int64_t rows, int64_t columns, Output& to) {
    const Tensor t = at::empty(problems.full({rows, columns}), options);
    to = problems.output(t, 2);
    return t;
  }
  Tensor output(int64_t columns, Output& to) { return output(p.scores.queries, columns, to); }
  void run(MatrixRegressionProgram (*kernel)(const MatrixRegressionParameters&)) {
    if (!problems.empty() && p.scores.queries > 0) execute(kernel(p), p);
  }
};

// Once, where the statistics of a point are made; the kernels read no memory beyond what is stored whatever the
// indices are.
void check_indices(const MatrixRegressionParameters& p, int64_t batch) {
  const auto view = [&](const Input& m) { return matrix(m, p.scores, batch); };
  const auto crow = view(p.target_rows), columns = view(p.target_columns);
  const auto index = [](const InputView& m, int64_t i) { return static_cast<const int64_t*>(m.data)[i * m.row]; };
  const int64_t n1 = p.scores.queries, n2 = p.scores.keys;
  const char* op = "_matrix_regression_statistics";
  RESCALED_CHECK(VALUE, index(crow, 0) == 0 && index(crow, n1) == p.stored, op, "crow_indices from 0 to ", p.stored,
                 ", the number of values, got ", index(crow, 0), " to ", index(crow, n1));
  for (int64_t i = 0; i < n1; ++i) {
    const int64_t begin = index(crow, i), end = index(crow, i + 1);
    RESCALED_CHECK(VALUE, begin <= end && end <= p.stored, op, "crow_indices that never decrease, got ", begin,
                   " and then ", end);
    int64_t last = -1;
    for (int64_t x = begin; x < end; ++x) {
      const int64_t column = index(columns, x);
      RESCALED_CHECK(VALUE, column > last && column < n2, op,
                     "col_indices of a row ascending, none twice, within 0 to ", n2 - 1, ", got ", column, " in row ",
                     i);
      last = column;
    }
  }
}

Tensor statistics_of(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS) {
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_point("_matrix_regression_statistics", point, RESCALED_THE_MATRIX_SETTINGS);
  Call call(point, RESCALED_THE_MATRIX_SETTINGS);
  if (call.p.source == Target::sparse)
    for (int64_t b = 0; b < call.problems.count(); ++b) check_indices(call.p, b);
  const Tensor out = call.output(MatrixRegressionStatistics::count, call.p.statistics);
  call.run(matrix_regression_cpu_kernels().statistics);
  return out;
}

Tensor gradient(RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_saved("_matrix_regression_gradient", point, statistics, RESCALED_THE_MATRIX_SETTINGS);
  Call call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_values();
  call.p.saved_statistics = call.problems.input(statistics, 2);
  const Tensor out = call.output(query.size(-1), call.p.rows);
  call.run(matrix_regression_cpu_kernels().gradient);
  return out;
}

Two moments(RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS, bool full) {
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_saved("_matrix_regression_moments", point, statistics, RESCALED_THE_MATRIX_SETTINGS);
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
  check_matrix_saved(op, point, statistics, RESCALED_THE_MATRIX_SETTINGS);
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

Tensor tangents_of(RESCALED_MATRIX_TANGENTS, RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_tangents";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  check_matrix_saved(op, point, statistics, RESCALED_THE_MATRIX_SETTINGS), check_matrix_tangents(op, point, along);
  Call call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_tangents(along);
  call.p.saved_statistics = call.problems.input(statistics, 2);
  const Tensor out = call.output(MatrixRegressionTangents::count, call.p.tangents);
  call.run(matrix_regression_cpu_kernels().tangents);
  return out;
}

Tensor gradient_tangent(RESCALED_MATRIX_TANGENTS, const Tensor& tangents, RESCALED_MATRIX, const Tensor& statistics,
                        RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_gradient_tangent";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  check_matrix_saved(op, point, statistics, RESCALED_THE_MATRIX_SETTINGS), check_matrix_tangents(op, point, along);
  check_matrix_rows(op, "tangents", point, tangents, MatrixRegressionTangents::count);
  Call call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_values(), call.with_tangents(along);
  call.p.scores.tangent_value = call.p.scores.tangent_key;
  call.p.saved_statistics = call.problems.input(statistics, 2);
  call.p.saved_tangents = call.problems.input(tangents, 2);
  const Tensor out = call.output(query.size(-1), call.p.rows);
  call.run(matrix_regression_cpu_kernels().gradient_tangent);
  return out;
}

// What columns and elements have in common.
Call weighted_call(const char* op, const MatrixPoint& along, const MaybeTensor& tangents, const Tensor& weight,
                   const MatrixPoint& point, const Tensor& statistics, const MatrixSettings& settings) {
  check_matrix_saved(op, point, statistics, settings), check_matrix_tangents(op, point, along);
  check_matrix_weight(op, point, weight);
  if (tangents.has_value()) check_matrix_rows(op, "tangents", point, *tangents, MatrixRegressionTangents::count);
  Call call(point, settings);
  call.with_tangents(along);
  call.p.saved_statistics = call.problems.input(statistics, 2);
  call.p.saved_tangents = call.problems.input(defined_or(tangents), 2);
  call.p.weight = call.problems.input(weight, 1);
  return call;
}
Tensor columns(RESCALED_MATRIX_TANGENTS, const MaybeTensor& tangents, const Tensor& weight, RESCALED_MATRIX,
               const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  Call call = weighted_call("_matrix_regression_columns", RESCALED_THE_MATRIX_TANGENTS, tangents, weight,
                            RESCALED_THE_MATRIX, statistics, RESCALED_THE_MATRIX_SETTINGS);
  const Tensor out = call.output(key.size(-2), query.size(-1), call.p.columns);
  if (query.size(-2) == 0) out.zero_();
  call.run(matrix_regression_cpu_kernels().columns);
  return out;
}
Tensor elements(RESCALED_MATRIX_TANGENTS, const MaybeTensor& tangents, const Tensor& weight, RESCALED_MATRIX,
                const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  Call call = weighted_call("_matrix_regression_elements", RESCALED_THE_MATRIX_TANGENTS, tangents, weight,
                            RESCALED_THE_MATRIX, statistics, RESCALED_THE_MATRIX_SETTINGS);
  const Tensor out = call.output(query.size(-2), key.size(-2), call.p.elements);
  if (is_causal) out.zero_();
  call.run(matrix_regression_cpu_kernels().elements);
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
  m.impl("_matrix_regression_tangents", TORCH_FN(tangents_of));
  m.impl("_matrix_regression_gradient_tangent", TORCH_FN(gradient_tangent));
  m.impl("_matrix_regression_columns", TORCH_FN(columns));
  m.impl("_matrix_regression_elements", TORCH_FN(elements));
}
