// SPDX-License-Identifier: BSD-3-Clause
#include "inverse_hessian.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

#include <cmath>
#include <limits>

#include "../ops/regression/primitives.h"
#include "../ops/regression/resident.h"
#include "conjugate_gradients.h"
#include "direction.h"

namespace torch_rescaled::solvers {
namespace {

using namespace rescaled::ops;
using Numbers = rescaled::RegressionStatistics;
using Rows = rescaled::RegressionRows;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr int kMostProducts = 5000;

Tensor by_matrix(const RegressionPoint& x, const ResidentPoint& at, const Tensor& v) {
  const RegressionCurvature found = regression_curvature(x.design(), at.rows, at.statistics, "full");
  const Tensor hessian = found.hessian.to(at::kDouble);
  const Tensor finite = hessian.isfinite().flatten(-2).all(-1).unsqueeze(-1);
  const Tensor solved = symmetric_solve(at::where(finite.unsqueeze(-1), hessian, 0), v.to(at::kDouble), 1e-13);
  return at::where(finite, solved, kNan);
}

// The diagonal of Gauss-Newton's Hessian [*L, d]: a read of A, and but for the plain form another.
Tensor diagonal_of(const RegressionPoint& x, const ResidentPoint& at, const RegressionSettings& settings) {
  const auto row = [&](int64_t i) { return at.rows.select(-2, i); };
  const Tensor squares = regression_transposed(x.design(), row(Rows::diagonal).unsqueeze(-2), /*squared=*/true);
  const Tensor diagonal = squares.select(-2, 0).to(at::kDouble);
  if (settings.form == "plain") return diagonal;
  const Tensor sides = regression_transposed(x.design(), at::stack({row(Rows::p), row(Rows::q)}, -2));
  const Tensor p = sides.select(-2, 0).to(at::kDouble), q = sides.select(-2, 1).to(at::kDouble),
               square = at.statistics.select(-1, Numbers::square).unsqueeze(-1);
  return diagonal + square * p * p - 2 * p * q;
}

// In the units of the point, of all problems at once.
Tensor by_products(const RegressionPoint& x, const ResidentPoint& at, const RegressionSettings& settings,
                   const Tensor& v) {
  const bool wide = x.b.scalar_type() == at::kDouble;
  const double epsilon = wide ? std::numeric_limits<double>::epsilon() : std::numeric_limits<float>::epsilon();
  const Tensor unit = (-at.statistics.select(-1, Numbers::log_scale)).exp().unsqueeze(-1);
  const Tensor diagonal = diagonal_of(x, at, settings);
  const Tensor inverse = at::maximum(diagonal, 1e-14 * diagonal.amax(-1, /*keepdim=*/true)).reciprocal();
  return conjugate_gradients(
      [&](const Tensor& direction) {
        return regression_product(x, (direction * unit).to(x.b.scalar_type()), settings, "full").to(at::kDouble);
      },
      [&](const Tensor& rest) { return inverse * rest; }, v.to(at::kDouble).expand_as(diagonal),
      {10 * epsilon, std::sqrt(epsilon), kMostProducts});
}

}  // namespace

Tensor inverse_hessian_times(const RegressionPoint& x, const RegressionSettings& settings, const Tensor& v) {
  const ResidentPoint at = resident_point(x, settings);
  const Tensor solved = is_wide(x.design()) ? by_products(x, at, settings, v) : by_matrix(x, at, v);
  const Tensor log_scale = at.statistics.select(-1, Numbers::log_scale).unsqueeze(-1);
  return ((-log_scale / 2).exp() * solved * (-log_scale / 2).exp()).to(v.scalar_type());
}

}  // namespace torch_rescaled::solvers
