// SPDX-License-Identifier: BSD-3-Clause
// The passes over the map: calls of them, and on devices without kernels the plain formulas.
#include <torch/library.h>

#include "../../kernels/matrix_regression/parameters.h"
#include "checks.h"
#include "primitives.h"

namespace rescaled::ops {
namespace {

#define POINT_ARGUMENTS \
  x.query, x.key, maybe(x.target), maybe(x.mask), maybe(x.target_rows), maybe(x.target_columns), maybe(x.target_values)
#define ALONG_ARGUMENTS maybe(along.query), maybe(along.key), maybe(along.target)
#define SETTINGS_ARGUMENTS settings.is_causal, settings.kind, settings.form, settings.source

Tensor statistics_of(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS) {
  check_matrix_point("_matrix_regression_statistics", RESCALED_THE_MATRIX, RESCALED_THE_MATRIX_SETTINGS);
  if (query.is_cuda()) {
    TORCH_WARN_ONCE(
        "torch_rescaled::matrix_regression_loss: has no CUDA kernels yet; the plain-tensor path takes their place, "
        "which is right but forms arrays of the map's size");
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
Tensor tangents_of(RESCALED_MATRIX_TANGENTS, RESCALED_MATRIX, const Tensor&, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_tangents";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  check_matrix_point(op, point, RESCALED_THE_MATRIX_SETTINGS), check_matrix_tangents(op, point, along);
  return plain_matrix_tangents(along, point, RESCALED_THE_MATRIX_SETTINGS).contiguous();
}
Tensor gradient_tangent(RESCALED_MATRIX_TANGENTS, const Tensor&, RESCALED_MATRIX, const Tensor&,
                        RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_gradient_tangent";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  check_matrix_point(op, point, RESCALED_THE_MATRIX_SETTINGS), check_matrix_tangents(op, point, along);
  return plain_matrix_gradient_tangent(along, point, RESCALED_THE_MATRIX_SETTINGS).contiguous();
}
Tensor columns(RESCALED_MATRIX_TANGENTS, const MaybeTensor& tangents, const Tensor& weight, RESCALED_MATRIX,
               const Tensor&, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_columns";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  check_matrix_point(op, point, RESCALED_THE_MATRIX_SETTINGS), check_matrix_tangents(op, point, along);
  check_matrix_weight(op, point, weight);
  return plain_matrix_columns(weight, along, tangents.has_value(), point, RESCALED_THE_MATRIX_SETTINGS).contiguous();
}
Tensor elements(RESCALED_MATRIX_TANGENTS, const MaybeTensor& tangents, const Tensor& weight, RESCALED_MATRIX,
                const Tensor&, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_elements";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  check_matrix_point(op, point, RESCALED_THE_MATRIX_SETTINGS), check_matrix_tangents(op, point, along);
  check_matrix_weight(op, point, weight);
  return plain_matrix_elements(weight, along, tangents.has_value(), point, RESCALED_THE_MATRIX_SETTINGS).contiguous();
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
Tensor matrix_tangents(const MatrixPoint& along, const MatrixPoint& x, const Tensor& statistics,
                       const MatrixSettings& settings) {
  static const auto op = handle<MatrixTangents>("torch_rescaled::_matrix_regression_tangents");
  return op.call(ALONG_ARGUMENTS, POINT_ARGUMENTS, statistics, SETTINGS_ARGUMENTS);
}
Tensor matrix_gradient_tangent(const MatrixPoint& along, const Tensor& tangents, const MatrixPoint& x,
                               const Tensor& statistics, const MatrixSettings& settings) {
  static const auto op = handle<MatrixGradientTangent>("torch_rescaled::_matrix_regression_gradient_tangent");
  return op.call(ALONG_ARGUMENTS, tangents, POINT_ARGUMENTS, statistics, SETTINGS_ARGUMENTS);
}
Tensor matrix_columns(const MatrixWeighted& w, const MatrixPoint& x, const Tensor& statistics,
                      const MatrixSettings& settings) {
  static const auto op = handle<MatrixColumns>("torch_rescaled::_matrix_regression_columns");
  const MatrixPoint& along = w.along;
  return op.call(ALONG_ARGUMENTS, maybe(w.tangents), w.weight, POINT_ARGUMENTS, statistics, SETTINGS_ARGUMENTS);
}
Tensor matrix_elements(const MatrixWeighted& w, const MatrixPoint& x, const Tensor& statistics,
                       const MatrixSettings& settings) {
  static const auto op = handle<MatrixColumns>("torch_rescaled::_matrix_regression_elements");
  const MatrixPoint& along = w.along;
  return op.call(ALONG_ARGUMENTS, maybe(w.tangents), w.weight, POINT_ARGUMENTS, statistics, SETTINGS_ARGUMENTS);
}

}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
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
