// SPDX-License-Identifier: BSD-3-Clause
// The regression family by the kernels of a device: checks, outputs, parameters. A `Device` has, all static,
//
//   bool serves(const Tensor& like, bool empty)    else the plain-tensor formulas do
//   using Sparse    the same of a sparse A (csr.h)
//   void evaluate(RegressionParameters&, const Tensor& like)    and gauss_newton, product, matvec, statistics, rows,
//                                                  model, curvature; brings the workspace, never gets an empty batch
#pragma once
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include "checks.h"
#include "csr.h"
#include "parameters.h"
#include "plain.h"
#include "primitives.h"
#include "resident.h"

namespace rescaled::ops {

// Whether there is nothing for a kernel of this problem.
inline bool is_empty(const Problems& problems, const RegressionParameters& p, bool with_columns = true) {
  return problems.empty() || p.rows == 0 || (with_columns && p.columns == 0);
}

template <class Device>
Two evaluate(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN) {
  const RegressionPoint point = RESCALED_THE_REGRESSION;
  const RegressionSettings settings = RESCALED_THE_REGRESSION_SETTINGS;
  check_regression_point("_regression_evaluate", point, settings);
  if (point.pattern.sparse()) return Device::Sparse::evaluate(point, settings);
  const Problems problems(point);
  RegressionParameters p = problems.parameters();
  set(p, kind, form), set(p, problems, point);
  if (!Device::serves(A, is_empty(problems, p))) return plain_regression_evaluate(point, settings);
  const Tensor statistics = at::empty(problems.full({RegressionStatistics::count}), wide(A)),
               gradient = at::empty(problems.full({p.columns}), wide(A));
  p.statistics = problems.output(statistics, 1), p.vector = problems.output(gradient, 1);
  if (!problems.empty()) Device::evaluate(p, A);
  return {statistics, gradient};
}

template <class Device>
Three gauss_newton(const Tensor& A, const Tensor& b, const Tensor& x, const MaybeTensor& row_weight,
                   RESCALED_REGRESSION_SETTINGS) {
  const RegressionPoint point{A, b, x, defined_or(row_weight), {}};
  check_regression_point("_regression_gauss_newton", point, RESCALED_THE_REGRESSION_SETTINGS);
  const Problems problems(point);
  RegressionParameters p = problems.parameters();
  set(p, kind, form), set(p, problems, point);
  if (!Device::serves(A, is_empty(problems, p)))
    return plain_regression_gauss_newton(point, RESCALED_THE_REGRESSION_SETTINGS);
  const Tensor statistics = at::empty(problems.full({RegressionStatistics::count}), wide(A)),
               gradient = at::empty(problems.full({p.columns}), wide(A)),
               hessian = at::empty(problems.full({p.columns, p.columns}), A.options().dtype(accumulation_type(A)));
  p.statistics = problems.output(statistics, 1), p.vector = problems.output(gradient, 1);
  p.hessian = problems.output(hessian, 2);
  if (!problems.empty()) Device::gauss_newton(p, A);
  return {statistics, gradient, hessian};
}

template <class Device>
Tensor product(RESCALED_REGRESSION, const Tensor& v, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature,
               RESCALED_PATTERN) {
  const RegressionPoint point = RESCALED_THE_REGRESSION;
  const RegressionSettings settings = RESCALED_THE_REGRESSION_SETTINGS;
  check_regression_product(point, v, settings, curvature);
  if (curvature == "clipped")  // not linear in the row sum: it must be known before the pass
    return plain_regression_product(point, v, settings, curvature);
  if (point.pattern.sparse()) return Device::Sparse::product(point, v, settings, curvature);
  const Problems problems({A, b, x, point.row_weight, point.penalty_weight});
  RegressionParameters p = problems.parameters();
  set(p, kind, form), set(p, problems, point);
  p.curvature = curvature_of(curvature);
  p.v = problems.input(v, 1);
  if (!Device::serves(A, is_empty(problems, p))) return plain_regression_product(point, v, settings, curvature);
  const Tensor scaled = at::empty(problems.full({p.columns}), wide(A)),
               statistics = at::empty(problems.full({RegressionStatistics::count}), wide(A));
  p.vector = problems.output(scaled, 1), p.statistics = problems.output(statistics, 1);
  if (!problems.empty()) Device::product(p, A);
  return unscaled(scaled, statistics.select(-1, RegressionStatistics::log_scale)).to(accumulation_type(A));
}

template <class Device>
Tensor matvec(const Tensor& A, const Tensor& v, RESCALED_PATTERN) {
  const Design design{A, RESCALED_THE_PATTERN(v)};
  check_regression_matvec(design, v);
  if (design.sparse()) return Device::Sparse::matvec(design, v);
  const Problems problems({A, {}, v, {}, {}});
  RegressionParameters p = problems.parameters();
  set(p, problems, {A, {}, {}, {}, {}});
  if (!Device::serves(A, is_empty(problems, p))) return plain_regression_matvec(design, v);
  const Tensor products = at::empty(problems.full({p.rows}), v.options());
  p.v = problems.input(v, 1), p.products = problems.output(products, 1);
  if (!problems.empty()) Device::matvec(p, A);
  return products;
}

template <class Device>
Tensor statistics(const Tensor& logits, const MaybeTensor& direction, const MaybeTensor& steps, RESCALED_TARGET,
                  RESCALED_REGRESSION_SETTINGS) {
  const RegressionPoint point{{}, b, {}, defined_or(row_weight), defined_or(penalty_weight)};
  check_resident(logits, point, RESCALED_THE_REGRESSION_SETTINGS);
  const Problems problems({{}, logits, {}, {}, {}});
  RegressionParameters p = problems.parameters();
  set(p, kind, form), set(p, problems, point);
  p.rows = logits.size(-1), p.steps_count = steps.has_value() ? steps->size(-1) : 1;
  p.logits = problems.input(logits, 1), p.direction = problems.input(defined_or(direction), 1);
  p.steps = problems.input(defined_or(steps), 1);
  if (!Device::serves(logits, is_empty(problems, p, /*with_columns=*/false)))
    return plain_regression_statistics(logits, direction, steps, b, row_weight, penalty_weight, kind, form);
  const Tensor out = at::empty(problems.full({p.steps_count, RegressionStatistics::count}), wide(logits));
  p.statistics = problems.output(out, 2);
  if (!problems.empty()) Device::statistics(p, logits);
  return out;
}

template <class Device>
Tensor rows(const Tensor& logits, const Tensor& statistics, RESCALED_TARGET, RESCALED_REGRESSION_SETTINGS) {
  const RegressionPoint point{{}, b, {}, defined_or(row_weight), defined_or(penalty_weight)};
  check_resident(logits, point, RESCALED_THE_REGRESSION_SETTINGS);
  const Problems problems({{}, logits, {}, {}, {}});
  RegressionParameters p = problems.parameters();
  set(p, kind, form), set(p, problems, point);
  p.rows = logits.size(-1);
  if (!Device::serves(logits, is_empty(problems, p, /*with_columns=*/false)))
    return plain_regression_rows(logits, statistics, b, row_weight, penalty_weight, kind, form);
  const Tensor saved = statistics.contiguous();
  p.logits = problems.input(logits, 1), p.saved_statistics = problems.input(saved, 1);
  const Tensor out = at::empty(problems.full({RegressionRows::count, p.rows}), logits.options());
  p.row_values = problems.output(out, 2);
  if (!problems.empty()) Device::rows(p, logits);
  return out;
}

template <class Device>
Tensor model(const Tensor& rows, const Tensor& direction) {
  const Problems problems({{}, direction, {}, {}, {}});
  RegressionParameters p = problems.parameters();
  p.rows = direction.size(-1);
  if (!Device::serves(direction, is_empty(problems, p, /*with_columns=*/false)))
    return plain_regression_model(rows, direction);
  const Tensor vectors = rows.contiguous();
  p.resident_rows = problems.input(vectors, 2), p.direction = problems.input(direction, 1);
  const Tensor out = at::empty(problems.full({RegressionModel::count}), wide(direction));
  p.model = problems.output(out, 1);
  if (!problems.empty()) Device::model(p, direction);
  return out;
}

template <class Device>
Three curvature(const Tensor& A, const Tensor& rows, const Tensor& statistics, c10::string_view curvature,
                RESCALED_PATTERN, c10::SymInt n_columns) {
  check_curvature("_regression_curvature", curvature, /*with_none=*/false);
  const Design design{A, pattern_of(crow_indices, col_indices, n_columns)};
  if (design.sparse()) return Device::Sparse::curvature(design, rows, statistics, curvature);
  const Problems problems({A, rows.select(-2, 0), {}, {}, {}});
  RegressionParameters p = problems.parameters();
  set(p, problems, {A, {}, {}, {}, {}});
  p.curvature = curvature_of(curvature);
  if (!Device::serves(A, is_empty(problems, p))) return plain_regression_curvature(design, rows, statistics, curvature);
  const Tensor vectors = rows.contiguous(), saved = statistics.contiguous();
  p.resident_rows = problems.input(vectors, 2), p.saved_statistics = problems.input(saved, 1);
  const auto options = A.options().dtype(accumulation_type(A));
  const Tensor gradient = at::empty(problems.full({p.columns}), options),
               hessian = at::empty(problems.full({p.columns, p.columns}), options),
               noise = at::empty(problems.full({p.columns}), options);
  p.gradient = problems.output(gradient, 1), p.hessian = problems.output(hessian, 2);
  p.noise = problems.output(noise, 1);
  if (!problems.empty()) Device::curvature(p, A);
  return {gradient, hessian, noise};
}

template <class Device>
void register_regression(torch::Library& m) {
  m.impl("_regression_evaluate", TORCH_FN(evaluate<Device>));
  m.impl("_regression_gauss_newton", TORCH_FN(gauss_newton<Device>));
  m.impl("_regression_product", TORCH_FN(product<Device>));
  m.impl("_regression_matvec", TORCH_FN(matvec<Device>));
  m.impl("_regression_statistics", TORCH_FN(statistics<Device>));
  m.impl("_regression_rows", TORCH_FN(rows<Device>));
  m.impl("_regression_model", TORCH_FN(model<Device>));
  m.impl("_regression_curvature", TORCH_FN(curvature<Device>));
}

}  // namespace rescaled::ops
