// SPDX-License-Identifier: BSD-3-Clause
// The passes over the map by the kernels of a device: checks, outputs, parameters. A `Device` has, all static,
//
//   bool serves(const MatrixPoint&)    else the plain-tensor formulas do
//   void run(const char* op, MatrixPass, MatrixRegressionParameters&, const Tensor& query)
//                                      never gets an empty batch, nor a map without rows
#pragma once
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "../../kernels/matrix_regression/parameters.h"
#include "../batch.h"
#include "checks.h"
#include "primitives.h"

namespace rescaled::ops {

// All leading dimensions, each a tensor's size or 1, in their order.
class MatrixProblems : public Batch {
 public:
  MatrixProblems(const MatrixPoint& x, const Tensor& direction) : Batch(sizes(x, direction)) {
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

inline Kind kind_of(const std::string& name) {
  return name == "exp" ? Kind::exp : name == "cosh" ? Kind::cosh : Kind::sinh;
}

struct MatrixCall {
  MatrixProblems problems;
  MatrixRegressionParameters p;
  Tensor query;
  MatrixCall(const MatrixPoint& x, const MatrixSettings& settings, const Tensor& direction = {})
      : problems(x, direction), query(x.query) {
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
    const Tensor t = at::empty(problems.full({rows, columns}), query.options());
    to = problems.output(t, 2);
    return t;
  }
  Tensor output(int64_t columns, Output& to) { return output(p.scores.queries, columns, to); }
  template <class Device>
  void run(const char* op, MatrixPass pass) {
    if (!problems.empty() && p.scores.queries > 0) Device::run(op, pass, p, query);
  }
};

template <class Device>
Tensor statistics_of(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_statistics";
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_point(op, point, RESCALED_THE_MATRIX_SETTINGS);
  if (!Device::serves(point)) return plain_matrix_statistics(point, RESCALED_THE_MATRIX_SETTINGS).contiguous();
  MatrixCall call(point, RESCALED_THE_MATRIX_SETTINGS);
  const Tensor out = call.output(MatrixRegressionStatistics::count, call.p.statistics);
  call.run<Device>(op, MatrixPass::statistics);
  return out;
}

template <class Device>
Tensor gradient(RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_gradient";
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_saved(op, point, statistics, RESCALED_THE_MATRIX_SETTINGS);
  if (!Device::serves(point)) return plain_matrix_gradient(point, RESCALED_THE_MATRIX_SETTINGS).contiguous();
  MatrixCall call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_values();
  call.p.saved_statistics = call.problems.input(statistics, 2);
  const Tensor out = call.output(query.size(-1), call.p.rows);
  call.run<Device>(op, MatrixPass::gradient);
  return out;
}

template <class Device>
Two moments(RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS, bool full) {
  const char* op = "_matrix_regression_moments";
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_saved(op, point, statistics, RESCALED_THE_MATRIX_SETTINGS);
  if (!Device::serves(point)) {
    const auto [p, q] = plain_matrix_moments(point, RESCALED_THE_MATRIX_SETTINGS, full);
    return {p.contiguous(), q.contiguous()};
  }
  MatrixCall call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_values();
  call.p.full = full;
  call.p.saved_statistics = call.problems.input(statistics, 2);
  const Tensor p = call.output(query.size(-1), call.p.rows), q = call.output(query.size(-1), call.p.others);
  call.run<Device>(op, MatrixPass::moments);
  return {p, q};
}

template <class Device>
Tensor product(RESCALED_MATRIX, const Tensor& statistics, const Tensor& moment_p, const Tensor& moment_q,
               const Tensor& direction, RESCALED_MATRIX_SETTINGS, bool full) {
  const char* op = "_matrix_regression_product";
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_saved(op, point, statistics, RESCALED_THE_MATRIX_SETTINGS);
  check_matrix_rows(op, "moment_p", point, moment_p, query.sym_size(-1));
  check_matrix_rows(op, "moment_q", point, moment_q, query.sym_size(-1));
  check_matrix_rows(op, "direction", point, direction, query.sym_size(-1));
  if (!Device::serves(point))
    return plain_matrix_product(point, direction, RESCALED_THE_MATRIX_SETTINGS, full).contiguous();
  MatrixCall call(point, RESCALED_THE_MATRIX_SETTINGS, direction);
  call.with_values();
  call.p.full = full;
  call.p.saved_statistics = call.problems.input(statistics, 2);
  call.p.moment_p = call.problems.input(moment_p, 2), call.p.moment_q = call.problems.input(moment_q, 2);
  const Tensor out = call.output(query.size(-1), call.p.rows);
  call.run<Device>(op, MatrixPass::product);
  return out;
}

template <class Device>
Tensor tangents_of(RESCALED_MATRIX_TANGENTS, RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_tangents";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  check_matrix_saved(op, point, statistics, RESCALED_THE_MATRIX_SETTINGS), check_matrix_tangents(op, point, along);
  if (!Device::serves(point)) return plain_matrix_tangents(along, point, RESCALED_THE_MATRIX_SETTINGS).contiguous();
  MatrixCall call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_tangents(along);
  call.p.saved_statistics = call.problems.input(statistics, 2);
  const Tensor out = call.output(MatrixRegressionTangents::count, call.p.tangents);
  call.run<Device>(op, MatrixPass::tangents);
  return out;
}

template <class Device>
Tensor gradient_tangent(RESCALED_MATRIX_TANGENTS, const Tensor& tangents, RESCALED_MATRIX, const Tensor& statistics,
                        RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_gradient_tangent";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  check_matrix_saved(op, point, statistics, RESCALED_THE_MATRIX_SETTINGS), check_matrix_tangents(op, point, along);
  check_matrix_rows(op, "tangents", point, tangents, MatrixRegressionTangents::count);
  if (!Device::serves(point))
    return plain_matrix_gradient_tangent(along, point, RESCALED_THE_MATRIX_SETTINGS).contiguous();
  MatrixCall call(point, RESCALED_THE_MATRIX_SETTINGS);
  call.with_values(), call.with_tangents(along);
  call.p.scores.tangent_value = call.p.scores.tangent_key;
  call.p.saved_statistics = call.problems.input(statistics, 2);
  call.p.saved_tangents = call.problems.input(tangents, 2);
  const Tensor out = call.output(query.size(-1), call.p.rows);
  call.run<Device>(op, MatrixPass::gradient_tangent);
  return out;
}

// What columns and elements have in common.
inline void check_weighted(const char* op, const MatrixPoint& along, const MaybeTensor& tangents, const Tensor& weight,
                           const MatrixPoint& point, const Tensor& statistics, const MatrixSettings& settings) {
  check_matrix_saved(op, point, statistics, settings), check_matrix_tangents(op, point, along);
  check_matrix_weight(op, point, weight);
  if (tangents.has_value()) check_matrix_rows(op, "tangents", point, *tangents, MatrixRegressionTangents::count);
}
inline MatrixCall weighted_call(const MatrixPoint& along, const MaybeTensor& tangents, const Tensor& weight,
                                const MatrixPoint& point, const Tensor& statistics, const MatrixSettings& settings) {
  MatrixCall call(point, settings);
  call.with_tangents(along);
  call.p.saved_statistics = call.problems.input(statistics, 2);
  call.p.saved_tangents = call.problems.input(defined_or(tangents), 2);
  call.p.weight = call.problems.input(weight, 1);
  return call;
}
template <class Device>
Tensor columns(RESCALED_MATRIX_TANGENTS, const MaybeTensor& tangents, const Tensor& weight, RESCALED_MATRIX,
               const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_columns";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_weighted(op, along, tangents, weight, point, statistics, settings);
  if (!Device::serves(point))
    return plain_matrix_columns(weight, along, tangents.has_value(), point, settings).contiguous();
  MatrixCall call = weighted_call(along, tangents, weight, point, statistics, settings);
  const Tensor out = call.output(key.size(-2), query.size(-1), call.p.columns);
  if (query.size(-2) == 0) out.zero_();
  call.run<Device>(op, MatrixPass::columns);
  return out;
}
template <class Device>
Tensor elements(RESCALED_MATRIX_TANGENTS, const MaybeTensor& tangents, const Tensor& weight, RESCALED_MATRIX,
                const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_elements";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_weighted(op, along, tangents, weight, point, statistics, settings);
  if (!Device::serves(point))
    return plain_matrix_elements(weight, along, tangents.has_value(), point, settings).contiguous();
  MatrixCall call = weighted_call(along, tangents, weight, point, statistics, settings);
  const Tensor out = call.output(query.size(-2), key.size(-2), call.p.elements);
  if (is_causal) out.zero_();
  call.run<Device>(op, MatrixPass::elements);
  return out;
}

template <class Device>
void register_matrix_passes(torch::Library& m) {
  m.impl("_matrix_regression_statistics", TORCH_FN(statistics_of<Device>));
  m.impl("_matrix_regression_gradient", TORCH_FN(gradient<Device>));
  m.impl("_matrix_regression_moments", TORCH_FN(moments<Device>));
  m.impl("_matrix_regression_product", TORCH_FN(product<Device>));
  m.impl("_matrix_regression_tangents", TORCH_FN(tangents_of<Device>));
  m.impl("_matrix_regression_gradient_tangent", TORCH_FN(gradient_tangent<Device>));
  m.impl("_matrix_regression_columns", TORCH_FN(columns<Device>));
  m.impl("_matrix_regression_elements", TORCH_FN(elements<Device>));
}

}  // namespace rescaled::ops
