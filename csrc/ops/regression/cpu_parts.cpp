// SPDX-License-Identifier: BSD-3-Clause
// Parts of a problem's rows by the CPU's kernels.
#include <torch/library.h>

#include "../threads.h"
#include "fused.h"
#include "parts.h"

namespace rescaled::ops {
namespace {

using Part = RegressionPart;

Tensor part(RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS, RESCALED_PATTERN) {
  const RegressionPoint point = RESCALED_THE_REGRESSION;
  check_regression_point("_regression_part", point, RESCALED_THE_REGRESSION_SETTINGS);
  if (point.pattern.sparse()) return plain_regression_part(point, RESCALED_THE_REGRESSION_SETTINGS);
  const Problems problems(point);
  RegressionParameters p = problems.parameters();
  set(p, kind, form), set(p, problems, point);
  if (is_empty(problems, p)) return plain_regression_part(point, RESCALED_THE_REGRESSION_SETTINGS);
  const Tensor out = at::empty(problems.full({Part::count + Part::vectors * p.columns}), wide(A));
  p.statistics = problems.output(out, 1);
  p.vector = problems.output(out.narrow(-1, Part::count, Part::vectors * p.columns).unflatten(-1, {-1, p.columns}), 2);
  execute(regression_part_cpu_kernels().evaluate(p), p);
  return out;
}

Tensor part_statistics(const Tensor& logits, const MaybeTensor& direction, const MaybeTensor& steps, RESCALED_TARGET,
                       RESCALED_REGRESSION_SETTINGS) {
  const RegressionPoint point{{}, b, {}, defined_or(row_weight), defined_or(penalty_weight)};
  check_resident(logits, point, RESCALED_THE_REGRESSION_SETTINGS);
  const Problems problems({{}, logits, {}, {}, {}});
  RegressionParameters p = problems.parameters();
  set(p, kind, form), set(p, problems, point);
  p.rows = logits.size(-1), p.steps_count = steps.has_value() ? steps->size(-1) : 1;
  p.logits = problems.input(logits, 1), p.direction = problems.input(defined_or(direction), 1);
  p.steps = problems.input(defined_or(steps), 1);
  if (is_empty(problems, p, /*with_columns=*/false))
    return plain_regression_part_statistics(logits, direction, steps, b, row_weight, penalty_weight, kind, form);
  const Tensor out = at::empty(problems.full({p.steps_count, Part::count}), wide(logits));
  p.statistics = problems.output(out, 2);
  execute(regression_part_cpu_kernels().statistics(p), p);
  return out;
}

std::tuple<Tensor, Tensor> part_gram(const Tensor& A, const Tensor& rows, c10::string_view curvature, RESCALED_PATTERN,
                                     c10::SymInt n_columns) {
  check_curvature("_regression_part_gram", curvature, /*with_none=*/false);
  const Design design{A, pattern_of(crow_indices, col_indices, n_columns)};
  if (design.sparse()) return plain_regression_part_gram(design, rows, curvature);
  const Problems problems({A, rows.select(-2, 0), {}, {}, {}});
  RegressionParameters p = problems.parameters();
  set(p, problems, {A, {}, {}, {}, {}});
  p.curvature = curvature_of(curvature);
  if (is_empty(problems, p)) return plain_regression_part_gram(design, rows, curvature);
  const Tensor vectors = rows.contiguous();
  p.resident_rows = problems.input(vectors, 2);
  const Tensor sides = at::empty(problems.full({RegressionSides::count, p.columns}), wide(A)),
               gram = at::empty(problems.full({p.columns, p.columns}), wide(A));
  p.vector = problems.output(sides, 2), p.hessian = problems.output(gram, 2);
  execute(regression_part_cpu_kernels().gram(p), p);
  return {sides, gram};
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) {
  using namespace rescaled::ops;
  m.impl("_regression_part", TORCH_FN(part));
  m.impl("_regression_part_statistics", TORCH_FN(part_statistics));
  m.impl("_regression_part_gram", TORCH_FN(part_gram));
}
