// SPDX-License-Identifier: BSD-3-Clause
// The matrix regression's family on every device: passes over blocks of the map where the kernels have one, plain
// formulas for the rest (docs/math.md (12)).
#include "primitives.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include "../../kernels/matrix_regression/parameters.h"
#include "checks.h"

namespace rescaled::ops {
namespace {

#define POINT_ARGUMENTS x.query, x.key, x.target, maybe(x.mask)
#define SETTINGS_ARGUMENTS settings.is_causal, settings.kind, settings.form

// Of the size of an input; an empty [0] where it is not needed.
Tensor finished(bool wanted, const Tensor& gradient, const Tensor& input) {
  if (!wanted) return none(input);
  return gradient.defined() ? gradient.contiguous() : at::zeros_symint(input.sym_sizes(), input.options());
}
bool moves_query_alone(const MatrixPoint& t) { return t.query.defined() && !t.key.defined() && !t.target.defined(); }

// Rows scaled as the statistics are, times e^(2 shift).
Tensor restored(const Tensor& rows, const Tensor& statistics, const MatrixSettings& settings) {
  const Tensor half = half_scale(statistics, settings);
  return half * rows * half;
}

Two forward(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS) {
  const MatrixPoint point = RESCALED_THE_MATRIX;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_matrix_point("_matrix_regression_forward", point, settings);
  const Tensor statistics = matrix_statistics(point, settings);
  return {row_losses(statistics, settings), statistics};
}

Three backward(const MaybeTensor& grad_loss, RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS,
               std::array<bool, 3> need) {
  const char* op = "_matrix_regression_backward";
  const MatrixPoint point = RESCALED_THE_MATRIX;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_matrix_point(op, point, settings);
  check_matrix_rows(op, "statistics", point, statistics, MatrixRegressionStatistics::count);
  MatrixPoint d;
  if (grad_loss.has_value()) {
    if (need[1] || need[2]) d = plain_matrix_backward(*grad_loss, point, settings, {false, need[1], need[2]});
    if (need[0])
      d.query =
          (grad_loss->unsqueeze(-1) * restored(matrix_gradient(point, statistics, settings), statistics, settings))
              .sum_to_size_symint(query.sym_sizes());
  }
  return {finished(need[0], d.query, query), finished(need[1], d.key, key), finished(need[2], d.target, target)};
}

Tensor jvp(RESCALED_MATRIX_TANGENTS, RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_jvp";
  const MatrixPoint point = RESCALED_THE_MATRIX, tangents = RESCALED_THE_MATRIX_TANGENTS;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_matrix_point(op, point, settings), check_matrix_tangents(op, point, tangents);
  check_matrix_rows(op, "statistics", point, statistics, MatrixRegressionStatistics::count);
  if (moves_query_alone(tangents))
    return (restored(matrix_gradient(point, statistics, settings), statistics, settings) * tangents.query).sum(-1);
  return plain_matrix_jvp(tangents, point, settings).contiguous();
}

Four double_backward(RESCALED_MATRIX_TANGENTS, const MaybeTensor& grad_loss, RESCALED_MATRIX, const Tensor& statistics,
                     RESCALED_MATRIX_SETTINGS, std::array<bool, 4> need) {
  const char* op = "_matrix_regression_double_backward";
  const MatrixPoint point = RESCALED_THE_MATRIX, tangents = RESCALED_THE_MATRIX_TANGENTS;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_matrix_point(op, point, settings), check_matrix_tangents(op, point, tangents);
  check_matrix_rows(op, "statistics", point, statistics, MatrixRegressionStatistics::count);
  MatrixDoubleBackward d;
  std::array<bool, 4> rest = need;
  if (moves_query_alone(tangents)) {
    if (need[0])
      d.tangent_loss =
          (restored(matrix_gradient(point, statistics, settings), statistics, settings) * tangents.query).sum(-1);
    if (need[1] && grad_loss.has_value()) {
      const Two moments = matrix_moments(point, statistics, settings, /*full=*/true);
      const Tensor rows = matrix_product(point, statistics, moments, tangents.query, settings, /*full=*/true);
      d.gradients.query =
          (grad_loss->unsqueeze(-1) * restored(rows, statistics, settings)).sum_to_size_symint(query.sym_sizes());
    }
    rest[0] = rest[1] = false;
  }
  if (rest != std::array<bool, 4>{}) {
    const MatrixDoubleBackward other =
        plain_matrix_double_backward(tangents, defined_or(grad_loss), point, settings, rest);
    if (rest[0]) d.tangent_loss = other.tangent_loss;
    if (rest[1]) d.gradients.query = other.gradients.query;
    d.gradients.key = other.gradients.key, d.gradients.target = other.gradients.target;
  }
  const Tensor losses = statistics.select(-1, MatrixRegressionStatistics::loss);
  return {finished(need[0], d.tangent_loss, losses), finished(need[1], d.gradients.query, query),
          finished(need[2], d.gradients.key, key), finished(need[3], d.gradients.target, target)};
}

Tensor statistics_of(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS) {
  check_matrix_point("_matrix_regression_statistics", RESCALED_THE_MATRIX, RESCALED_THE_MATRIX_SETTINGS);
  if (query.is_cuda()) {
    TORCH_WARN_ONCE(
        "torch_rescaled::matrix_regression_loss: has no CUDA kernels yet; the plain-tensor path takes their place, "
        "which is right but forms arrays of the target's size");
  }
  return plain_matrix_statistics(RESCALED_THE_MATRIX, RESCALED_THE_MATRIX_SETTINGS).contiguous();
}
Tensor gradient(RESCALED_MATRIX, const Tensor&, RESCALED_MATRIX_SETTINGS) {
  check_matrix_point("_matrix_regression_gradient", RESCALED_THE_MATRIX, RESCALED_THE_MATRIX_SETTINGS);
  return plain_matrix_gradient(RESCALED_THE_MATRIX, RESCALED_THE_MATRIX_SETTINGS).contiguous();
}
Two moments(RESCALED_MATRIX, const Tensor&, RESCALED_MATRIX_SETTINGS, bool full) {
  check_matrix_point("_matrix_regression_moments", RESCALED_THE_MATRIX, RESCALED_THE_MATRIX_SETTINGS);
  const auto [p, q] = plain_matrix_moments(RESCALED_THE_MATRIX, RESCALED_THE_MATRIX_SETTINGS, full);
  return {p.contiguous(), q.contiguous()};
}
Tensor product(RESCALED_MATRIX, const Tensor&, const Tensor&, const Tensor&, const Tensor& direction,
               RESCALED_MATRIX_SETTINGS, bool full) {
  const MatrixPoint point = RESCALED_THE_MATRIX;
  check_matrix_point("_matrix_regression_product", point, RESCALED_THE_MATRIX_SETTINGS);
  check_matrix_rows("_matrix_regression_product", "direction", point, direction, query.sym_size(-1));
  return plain_matrix_product(point, direction, RESCALED_THE_MATRIX_SETTINGS, full).contiguous();
}

}  // namespace

Two matrix_forward(const MatrixPoint& x, const MatrixSettings& settings) {
  static const auto op = handle<MatrixForward>("torch_rescaled::_matrix_regression_forward");
  return op.call(POINT_ARGUMENTS, SETTINGS_ARGUMENTS);
}
Tensor matrix_statistics(const MatrixPoint& x, const MatrixSettings& settings) {
  static const auto op = handle<MatrixStatistics>("torch_rescaled::_matrix_regression_statistics");
  return op.call(POINT_ARGUMENTS, SETTINGS_ARGUMENTS);
}
Tensor matrix_gradient(const MatrixPoint& x, const Tensor& statistics, const MatrixSettings& settings) {
  static const auto op = handle<MatrixGradient>("torch_rescaled::_matrix_regression_gradient");
  return op.call(POINT_ARGUMENTS, statistics, SETTINGS_ARGUMENTS);
}
Two matrix_moments(const MatrixPoint& x, const Tensor& statistics, const MatrixSettings& settings, bool full) {
  static const auto op = handle<MatrixMoments>("torch_rescaled::_matrix_regression_moments");
  return op.call(POINT_ARGUMENTS, statistics, SETTINGS_ARGUMENTS, full);
}
Tensor matrix_product(const MatrixPoint& x, const Tensor& statistics, const Two& moments, const Tensor& direction,
                      const MatrixSettings& settings, bool full) {
  static const auto op = handle<MatrixProduct>("torch_rescaled::_matrix_regression_product");
  return op.call(POINT_ARGUMENTS, statistics, std::get<0>(moments), std::get<1>(moments), direction, SETTINGS_ARGUMENTS,
                 full);
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  using namespace rescaled::ops;
  m.impl("_matrix_regression_forward", TORCH_FN(forward));
  m.impl("_matrix_regression_backward", TORCH_FN(backward));
  m.impl("_matrix_regression_jvp", TORCH_FN(jvp));
  m.impl("_matrix_regression_double_backward", TORCH_FN(double_backward));
  m.impl("_matrix_regression_statistics", TORCH_FN(statistics_of));
  m.impl("_matrix_regression_gradient", TORCH_FN(gradient));
  m.impl("_matrix_regression_moments", TORCH_FN(moments));
  m.impl("_matrix_regression_product", TORCH_FN(product));
}
