// SPDX-License-Identifier: BSD-3-Clause
// The matrix regression's family on every device, made of passes over the map (docs/math.md (12) to (15)).
#include "primitives.h"

#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "../../kernels/matrix_regression/parameters.h"
#include "checks.h"

namespace rescaled::ops {
namespace {

// Rows scaled as the statistics are, times e^(2 shift) and their cotangents, summed to the query's size.
Tensor of_query(const Tensor& rows, const Tensor& grad_loss, const MatrixPoint& x, const Tensor& statistics,
                const MatrixSettings& settings) {
  const Tensor half = half_scale(statistics, settings);
  return (grad_loss.unsqueeze(-1) * (half * rows * half)).sum_to_size_symint(x.query.sym_sizes());
}
Tensor reduced(const Tensor& gradient, const Tensor& like) { return gradient.sum_to_size_symint(like.sym_sizes()); }

Two forward(RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS) {
  const MatrixPoint point = RESCALED_THE_MATRIX;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_matrix_point("_matrix_regression_forward", point, settings);
  const Tensor statistics = matrix_statistics(point, settings);
  return {row_losses(statistics, settings), statistics};
}

Three backward(const MaybeTensor& grad_loss, RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS,
               std::array<bool, 3> need) {
  const MatrixPoint point = RESCALED_THE_MATRIX;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_matrix_saved("_matrix_regression_backward", point, statistics, settings);
  need[2] = need[2] && point.target.defined();
  MatrixPoint d;
  if (grad_loss.has_value()) {
    const MatrixWeighted weighted{*grad_loss};
    if (need[0])
      d.query = of_query(matrix_gradient(point, statistics, settings), *grad_loss, point, statistics, settings);
    if (need[1]) d.key = reduced(matrix_columns(weighted, point, statistics, settings), key);
    if (need[2]) d.target = reduced(matrix_elements(weighted, point, statistics, settings), point.target);
  }
  return {finished(need[0], d.query, query, query), finished(need[1], d.key, key, query),
          finished(need[2], d.target, point.target, query)};
}

Tensor jvp(RESCALED_MATRIX_TANGENTS, RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS) {
  const char* op = "_matrix_regression_jvp";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_matrix_saved(op, point, statistics, settings), check_matrix_tangents(op, point, along);
  return matrix_tangents(along, point, statistics, settings).select(-1, MatrixRegressionTangents::loss).contiguous();
}

Four double_backward(RESCALED_MATRIX_TANGENTS, const MaybeTensor& grad_loss, RESCALED_MATRIX, const Tensor& statistics,
                     RESCALED_MATRIX_SETTINGS, std::array<bool, 4> need) {
  const char* op = "_matrix_regression_double_backward";
  const MatrixPoint point = RESCALED_THE_MATRIX, along = RESCALED_THE_MATRIX_TANGENTS;
  const MatrixSettings settings = RESCALED_THE_MATRIX_SETTINGS;
  check_matrix_saved(op, point, statistics, settings), check_matrix_tangents(op, point, along);
  need[3] = need[3] && point.target.defined();
  Tensor tangent_loss;
  MatrixPoint d;
  if (along.query.defined() || along.key.defined() || along.target.defined()) {
    const Tensor tangents = matrix_tangents(along, point, statistics, settings);
    if (need[0]) tangent_loss = tangents.select(-1, MatrixRegressionTangents::loss);
    if (grad_loss.has_value()) {
      const MatrixWeighted weighted{*grad_loss, along, tangents};
      if (need[1])
        d.query = of_query(matrix_gradient_tangent(along, tangents, point, statistics, settings), *grad_loss, point,
                           statistics, settings);
      if (need[2]) d.key = reduced(matrix_columns(weighted, point, statistics, settings), key);
      if (need[3]) d.target = reduced(matrix_elements(weighted, point, statistics, settings), point.target);
    }
  }
  const Tensor losses = statistics.select(-1, MatrixRegressionStatistics::loss);
  return {finished(need[0], tangent_loss, losses, query), finished(need[1], d.query, query, query),
          finished(need[2], d.key, key, query), finished(need[3], d.target, point.target, query)};
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeExplicitAutograd, m) {
  using namespace rescaled::ops;
  m.impl("_matrix_regression_forward", TORCH_FN(forward));
  m.impl("_matrix_regression_backward", TORCH_FN(backward));
  m.impl("_matrix_regression_jvp", TORCH_FN(jvp));
  m.impl("_matrix_regression_double_backward", TORCH_FN(double_backward));
}
