// SPDX-License-Identifier: BSD-3-Clause
// Autograd of the regression family (../family.h); the forward saves the gradient in x.
#include <torch/library.h>

#include "../family.h"
#include "plain.h"
#include "primitives.h"

namespace rescaled::ops {
namespace {

#define POINT_ARGUMENTS A, b, x, row_weight, penalty_weight
#define TANGENT_ARGUMENTS tangent_A, tangent_b, tangent_x, tangent_row_weight, tangent_penalty_weight
#define POINT_LIST A, b, x, defined_or(row_weight), defined_or(penalty_weight)
#define TANGENT_LIST                                                                                   \
  defined_or(tangent_A), defined_or(tangent_b), defined_or(tangent_x), defined_or(tangent_row_weight), \
      defined_or(tangent_penalty_weight)

RegressionPoint of(const variable_list& x) { return {x[0], x[1], x[2], x[3], x[4]}; }
variable_list list_of(const RegressionPoint& x) { return {x.A, x.b, x.x, x.row_weight, x.penalty_weight}; }

// A, b, x, row_weight, penalty_weight; saved: loss, gradient
struct Regression {
  using Settings = RegressionSettings;
  static constexpr size_t kPoint = 5, kExtra = 0, kOutputs = 1, kSaved = 2;
  static constexpr std::array<const char*, 4> names = {"RescaledRegressionBackward", "RescaledRegressionDoubleBackward",
                                                       "RescaledRegressionJvpBackward",
                                                       "RescaledRegressionThirdBackward"};

  static variable_list backward(const Settings& settings, const variable_list& grads, const variable_list& point,
                                const variable_list&, const variable_list& saved, const std::vector<bool>& need) {
    static const auto op = handle<RegressionBackward>("torch_rescaled::_regression_backward");
    return to_list(op.call(maybe(grads[0]), point[0], point[1], point[2], maybe(point[3]), maybe(point[4]), saved[1],
                           settings.kind, settings.form, flags<5>(need)));
  }
  static variable_list jvp(const Settings& settings, const variable_list& t, const variable_list& point,
                           const variable_list&, const variable_list& saved) {
    static const auto op = handle<RegressionJvp>("torch_rescaled::_regression_jvp");
    return {op.call(maybe(t[0]), maybe(t[1]), maybe(t[2]), maybe(t[3]), maybe(t[4]), point[0], point[1], point[2],
                    maybe(point[3]), maybe(point[4]), saved[1], settings.kind, settings.form)};
  }
  static variable_list double_backward(const Settings& settings, const variable_list& t, const variable_list& grads,
                                       const variable_list& point, const variable_list&, const variable_list& saved,
                                       const std::vector<bool>& need) {
    static const auto op = handle<RegressionSecond>("torch_rescaled::_regression_double_backward");
    return to_list(op.call(maybe(t[0]), maybe(t[1]), maybe(t[2]), maybe(t[3]), maybe(t[4]), maybe(grads[0]), point[0],
                           point[1], point[2], maybe(point[3]), maybe(point[4]), saved[1], settings.kind, settings.form,
                           flags<6>(need)));
  }
  static variable_list plain_double_backward(const Settings& settings, const variable_list& t,
                                             const variable_list& grads, const variable_list& point,
                                             const variable_list&, const std::vector<bool>& need) {
    const RegressionDoubleBackward d =
        plain_regression_double_backward(of(t), grads[0], of(point), settings, flags<6>(need));
    return join({d.tangent_loss}, list_of(d.gradients));
  }
};
using Forward = Rules<Regression>::Forward;
using Backward = Rules<Regression>::Backward;
using Jvp = Rules<Regression>::Jvp;
using DoubleBackward = Rules<Regression>::DoubleBackward;

Two forward_autograd(c10::DispatchKeySet keys, RESCALED_REGRESSION, RESCALED_REGRESSION_SETTINGS) {
  static const auto op = handle<RegressionForward>("torch_rescaled::_regression_forward");
  const auto out = record<Forward>(RESCALED_THE_REGRESSION_SETTINGS, {POINT_LIST}, [&] {
    return to_list(op.redispatch(keys & c10::after_autograd_keyset, POINT_ARGUMENTS, kind, form));
  });
  return {out[0], out[1]};
}

Five backward_autograd(c10::DispatchKeySet keys, const MaybeTensor& grad_loss, RESCALED_REGRESSION,
                       const Tensor& gradient, RESCALED_REGRESSION_SETTINGS, std::array<bool, 5> need) {
  static const auto op = handle<RegressionBackward>("torch_rescaled::_regression_backward");
  const variable_list in{defined_or(grad_loss), POINT_LIST, none(gradient), gradient};
  const auto out = record<Backward>({RESCALED_THE_REGRESSION_SETTINGS, need}, in, [&] {
    return to_list(
        op.redispatch(keys & c10::after_autograd_keyset, grad_loss, POINT_ARGUMENTS, gradient, kind, form, need));
  });
  return {out[0], out[1], out[2], out[3], out[4]};
}

Tensor jvp_autograd(c10::DispatchKeySet keys, RESCALED_REGRESSION_TANGENTS, RESCALED_REGRESSION, const Tensor& gradient,
                    RESCALED_REGRESSION_SETTINGS) {
  const variable_list in{TANGENT_LIST, POINT_LIST, none(gradient), gradient};
  if (any_tangent(in, Jvp::kInputs))  // forward over forward
    return plain_regression_jvp(RESCALED_THE_REGRESSION_TANGENTS, RESCALED_THE_REGRESSION,
                                RESCALED_THE_REGRESSION_SETTINGS);
  static const auto op = handle<RegressionJvp>("torch_rescaled::_regression_jvp");
  return record<Jvp>(RESCALED_THE_REGRESSION_SETTINGS, in, [&] {
    return variable_list{
        op.redispatch(keys & c10::after_autograd_keyset, TANGENT_ARGUMENTS, POINT_ARGUMENTS, gradient, kind, form)};
  })[0];
}

Six double_backward_autograd(c10::DispatchKeySet keys, RESCALED_REGRESSION_TANGENTS, const MaybeTensor& grad_loss,
                             RESCALED_REGRESSION, const Tensor& gradient, RESCALED_REGRESSION_SETTINGS,
                             std::array<bool, 6> need) {
  const variable_list in{TANGENT_LIST, defined_or(grad_loss), POINT_LIST, none(gradient), gradient};
  const NeedSettings<RegressionSettings, 6> settings{RESCALED_THE_REGRESSION_SETTINGS, need};
  variable_list out;
  if (any_tangent(in, DoubleBackward::kInputs)) {
    out = DoubleBackward::plain(settings, in);
    for (Tensor& t : out)
      if (!t.defined()) t = none(gradient);
  } else {
    static const auto op = handle<RegressionSecond>("torch_rescaled::_regression_double_backward");
    out = record<DoubleBackward>(settings, in, [&] {
      return to_list(op.redispatch(keys & c10::after_autograd_keyset, TANGENT_ARGUMENTS, grad_loss, POINT_ARGUMENTS,
                                   gradient, kind, form, need));
    });
  }
  return {out[0], out[1], out[2], out[3], out[4], out[5]};
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, Autograd, m) {
  using namespace rescaled::ops;
  m.impl("_regression_forward", TORCH_FN(forward_autograd));
  m.impl("_regression_backward", TORCH_FN(backward_autograd));
  m.impl("_regression_jvp", TORCH_FN(jvp_autograd));
  m.impl("_regression_double_backward", TORCH_FN(double_backward_autograd));
  for (const char* name : {"_regression_evaluate", "_regression_gauss_newton", "_regression_product",
                           "_regression_matvec", "_regression_statistics", "_regression_rows", "_regression_model",
                           "_regression_curvature", "_regression_transposed"})
    m.impl(name, not_differentiable());
}
