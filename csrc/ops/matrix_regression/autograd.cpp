// SPDX-License-Identifier: BSD-3-Clause
// Autograd of the matrix regression's family (../family.h); the forward saves the statistics of its rows.
#include <torch/library.h>

#include "../family.h"
#include "checks.h"
#include "primitives.h"

namespace rescaled::ops {
namespace {

#define POINT_ARGUMENTS query, key, target, mask, target_rows, target_columns, target_values
#define TANGENT_ARGUMENTS tangent_query, tangent_key, tangent_target
#define POINT_LIST query, key, defined_or(target)
#define EXTRA_LIST defined_or(mask), defined_or(target_rows), defined_or(target_columns), defined_or(target_values)
#define TANGENT_LIST defined_or(tangent_query), defined_or(tangent_key), defined_or(tangent_target)

MatrixPoint of(const variable_list& x) { return {x[0], x[1], x[2], {}}; }
MatrixPoint of(const variable_list& x, const variable_list& extra) {
  return {x[0], x[1], x[2], extra[0], extra[1], extra[2], extra[3]};
}
#define POINT(point, extra) \
  point[0], point[1], maybe(point[2]), maybe(extra[0]), maybe(extra[1]), maybe(extra[2]), maybe(extra[3])
#define SETTINGS(settings) settings.is_causal, settings.kind, settings.form, settings.source

// What stands for a target that is not dense has no derivative: an error where one is asked for.
void check_constants(const MatrixPoint& x) {
  for (const auto& [name, t] : {std::pair<const char*, const Tensor&>{"target_rows", x.target_rows},
                                {"target_columns", x.target_columns},
                                {"target_values", x.target_values}})
    check_constant("_matrix_regression_forward", name, t);
}

// query, key, target | mask, target_rows, target_columns, target_values; saved: losses, statistics
struct MatrixRegression {
  using Settings = MatrixSettings;
  static constexpr size_t kPoint = 3, kExtra = 4, kOutputs = 1, kSaved = 2;
  static constexpr std::array<const char*, 4> names = {
      "RescaledMatrixRegressionBackward", "RescaledMatrixRegressionDoubleBackward",
      "RescaledMatrixRegressionJvpBackward", "RescaledMatrixRegressionThirdBackward"};

  static variable_list backward(const Settings& settings, const variable_list& grads, const variable_list& point,
                                const variable_list& extra, const variable_list& saved, const std::vector<bool>& need) {
    static const auto op = handle<MatrixBackward>("torch_rescaled::_matrix_regression_backward");
    return to_list(op.call(maybe(grads[0]), POINT(point, extra), saved[1], SETTINGS(settings), flags<3>(need)));
  }
  static variable_list jvp(const Settings& settings, const variable_list& t, const variable_list& point,
                           const variable_list& extra, const variable_list& saved) {
    static const auto op = handle<MatrixJvp>("torch_rescaled::_matrix_regression_jvp");
    return {op.call(maybe(t[0]), maybe(t[1]), maybe(t[2]), POINT(point, extra), saved[1], SETTINGS(settings))};
  }
  static variable_list double_backward(const Settings& settings, const variable_list& t, const variable_list& grads,
                                       const variable_list& point, const variable_list& extra,
                                       const variable_list& saved, const std::vector<bool>& need) {
    static const auto op = handle<MatrixSecond>("torch_rescaled::_matrix_regression_double_backward");
    return to_list(op.call(maybe(t[0]), maybe(t[1]), maybe(t[2]), maybe(grads[0]), POINT(point, extra), saved[1],
                           SETTINGS(settings), flags<4>(need)));
  }
  static variable_list plain_double_backward(const Settings& settings, const variable_list& t,
                                             const variable_list& grads, const variable_list& point,
                                             const variable_list& extra, const std::vector<bool>& need) {
    const MatrixDoubleBackward d =
        plain_matrix_double_backward(of(t), grads[0], of(point, extra), settings, flags<4>(need));
    return {d.tangent_loss, d.gradients.query, d.gradients.key, d.gradients.target};
  }
};
using Forward = Rules<MatrixRegression>::Forward;
using Backward = Rules<MatrixRegression>::Backward;
using Jvp = Rules<MatrixRegression>::Jvp;
using DoubleBackward = Rules<MatrixRegression>::DoubleBackward;

Two forward_autograd(c10::DispatchKeySet keys, RESCALED_MATRIX, RESCALED_MATRIX_SETTINGS) {
  static const auto op = handle<MatrixForward>("torch_rescaled::_matrix_regression_forward");
  check_constants(RESCALED_THE_MATRIX);
  const auto out = record<Forward>(RESCALED_THE_MATRIX_SETTINGS, {POINT_LIST, EXTRA_LIST}, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, POINT_ARGUMENTS, is_causal, kind, form, source));
  });
  return {out[0], out[1]};
}

Three backward_autograd(c10::DispatchKeySet keys, const MaybeTensor& grad_loss, RESCALED_MATRIX,
                        const Tensor& statistics, RESCALED_MATRIX_SETTINGS, std::array<bool, 3> need) {
  static const auto op = handle<MatrixBackward>("torch_rescaled::_matrix_regression_backward");
  need[2] = need[2] && target.has_value();
  const variable_list in{defined_or(grad_loss), POINT_LIST, EXTRA_LIST, none(statistics), statistics};
  const auto out = record<Backward>({RESCALED_THE_MATRIX_SETTINGS, need}, in, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, grad_loss, POINT_ARGUMENTS, statistics, is_causal,
                                 kind, form, source, need));
  });
  return {out[0], out[1], out[2]};
}

Tensor jvp_autograd(c10::DispatchKeySet keys, RESCALED_MATRIX_TANGENTS, RESCALED_MATRIX, const Tensor& statistics,
                    RESCALED_MATRIX_SETTINGS) {
  const variable_list in{TANGENT_LIST, POINT_LIST, EXTRA_LIST, none(statistics), statistics};
  if (any_tangent(in, Jvp::kInputs))  // forward over forward
    return plain_matrix_jvp(RESCALED_THE_MATRIX_TANGENTS, RESCALED_THE_MATRIX, RESCALED_THE_MATRIX_SETTINGS);
  static const auto op = handle<MatrixJvp>("torch_rescaled::_matrix_regression_jvp");
  return record<Jvp>(RESCALED_THE_MATRIX_SETTINGS, in, [&] {
    return variable_list{op.redispatch(keys & c10::after_autograd_keyset, TANGENT_ARGUMENTS, POINT_ARGUMENTS,
                                       statistics, is_causal, kind, form, source)};
  })[0];
}

Four double_backward_autograd(c10::DispatchKeySet keys, RESCALED_MATRIX_TANGENTS, const MaybeTensor& grad_loss,
                              RESCALED_MATRIX, const Tensor& statistics, RESCALED_MATRIX_SETTINGS,
                              std::array<bool, 4> need) {
  need[3] = need[3] && target.has_value();
  const variable_list in{TANGENT_LIST, defined_or(grad_loss), POINT_LIST, EXTRA_LIST, none(statistics), statistics};
  const NeedSettings<MatrixSettings, 4> settings{RESCALED_THE_MATRIX_SETTINGS, need};
  variable_list out;
  if (any_tangent(in, DoubleBackward::kInputs)) {
    out = DoubleBackward::plain(settings, in);
    for (Tensor& t : out)
      if (!t.defined()) t = none(statistics);
  } else {
    static const auto op = handle<MatrixSecond>("torch_rescaled::_matrix_regression_double_backward");
    out = record<DoubleBackward>(settings, in, [&] {
      return to_list(op.redispatch(keys & c10::after_autograd_keyset, TANGENT_ARGUMENTS, grad_loss, POINT_ARGUMENTS,
                                   statistics, is_causal, kind, form, source, need));
    });
  }
  return {out[0], out[1], out[2], out[3]};
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, Autograd, m) {
  using namespace rescaled::ops;
  m.impl("_matrix_regression_forward", TORCH_FN(forward_autograd));
  m.impl("_matrix_regression_backward", TORCH_FN(backward_autograd));
  m.impl("_matrix_regression_jvp", TORCH_FN(jvp_autograd));
  m.impl("_matrix_regression_double_backward", TORCH_FN(double_backward_autograd));
  for (const char* name :
       {"_matrix_regression_statistics", "_matrix_regression_gradient", "_matrix_regression_moments",
        "_matrix_regression_product", "_matrix_regression_tangents", "_matrix_regression_gradient_tangent",
        "_matrix_regression_columns", "_matrix_regression_elements"})
    m.impl(name, not_differentiable());
}
