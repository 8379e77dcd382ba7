// SPDX-License-Identifier: BSD-3-Clause
// The passes over the map: calls of them, and on devices without kernels the plain formulas.
#include <torch/library.h>

#include "fused.h"

namespace rescaled::ops {
namespace {

#define POINT_ARGUMENTS \
  x.query, x.key, maybe(x.target), maybe(x.mask), maybe(x.target_rows), maybe(x.target_columns), maybe(x.target_values)
#define ALONG_ARGUMENTS maybe(along.query), maybe(along.key), maybe(along.target)
#define SETTINGS_ARGUMENTS settings.is_causal, settings.kind, settings.form, settings.source

struct Plain {
  static bool serves(const MatrixPoint&) { return false; }
  static void run(const char*, MatrixPass, MatrixRegressionParameters&, const Tensor&) {}
};

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
  rescaled::ops::register_matrix_passes<rescaled::ops::Plain>(m);
}
