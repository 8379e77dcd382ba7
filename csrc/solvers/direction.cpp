// SPDX-License-Identifier: BSD-3-Clause
#include "direction.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/cholesky_solve.h>
#include <ATen/ops/diag.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_cholesky_ex.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_solve_triangular.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>

#include <limits>
#include <tuple>

namespace torch_rescaled::solvers {
namespace {

constexpr double kEpsilon = std::numeric_limits<double>::epsilon();

constexpr double kFloor = 1e-14;  // of the largest entry of the diagonal, and of 1

// 1 / sqrt of the diagonal, floored; undefined for a Hessian without one.
Tensor scaling(const Tensor& hessian) {
  const Tensor diagonal = hessian.diagonal().abs();
  const double most = diagonal.numel() > 0 ? diagonal.max().item<double>() : 0;
  if (!(most > 0) || most > std::numeric_limits<double>::max()) return {};
  return diagonal.clamp_min(kFloor * most).rsqrt();
}
Tensor scaled(const Tensor& hessian, const Tensor& scale) { return hessian * scale.unsqueeze(0) * scale.unsqueeze(1); }

// A pivot no larger than the damping, where that is next to nothing, is zero.
bool is_zero(double pivot, double d, double damping) {
  return damping < 1e-8 && pivot * pivot < 100 * d * kEpsilon + 2 * damping;
}

}  // namespace

Attempt attempted_direction(const Tensor& hessian, const Tensor& gradient, double damping) {
  const Tensor diagonal = hessian.diagonal().abs(), scale = at::maximum(diagonal, kFloor * diagonal.max()).rsqrt();
  const Tensor identity = at::eye(hessian.size(0), hessian.options());
  const auto [factor, info] = at::linalg_cholesky_ex(scaled(hessian, scale) + (damping + kFloor) * identity);
  const Tensor step = -scale * at::cholesky_solve((scale * gradient).unsqueeze(-1), factor).squeeze(-1);
  return {step, at::stack({info.to(at::kDouble), factor.diagonal().min(), step.isfinite().all().to(at::kDouble)})};
}
bool attempt_serves(const double* checks, int64_t columns, double damping) {
  return checks[0] == 0 && checks[1] > 0 && !is_zero(checks[1], static_cast<double>(columns), damping) &&
         checks[2] == 1;
}

Direction newton_direction(const Tensor& hessian, const Tensor& gradient, double damping) {
  Direction out;
  const Tensor scale = scaling(hessian);
  if (!scale.defined() || !hessian.isfinite().all().item<bool>()) return out;
  const Tensor matrix = scaled(hessian, scale), identity = at::eye(matrix.size(0), matrix.options()),
               right = (scale * gradient).unsqueeze(-1);
  const double d = static_cast<double>(matrix.size(0));
  for (double shift = 0; shift < 1e6; shift = shift == 0 ? 1e-10 : 10 * shift) {
    const auto [factor, info] = at::linalg_cholesky_ex(matrix + (damping + kFloor + shift) * identity);
    if (info.item<int32_t>() != 0) continue;
    const double least = factor.diagonal().min().item<double>();
    if (shift == 0 && is_zero(least, d, damping)) {
      out.deficient = true;
      out.step = -scale * symmetric_solve(matrix, right.squeeze(-1), 100 * d * kEpsilon);
    } else {
      out.shift = shift;
      out.step = -scale * at::cholesky_solve(right, factor).squeeze(-1);
    }
    return out;
  }
  return out;
}

Factored::Factored(const Tensor& hessian, double ridge) : scale_(scaling(hessian)) {
  if (!scale_.defined() || !hessian.isfinite().all().item<bool>()) return;
  const Tensor matrix = scaled(hessian, scale_), identity = at::eye(matrix.size(0), matrix.options());
  for (; ridge < 1e6; ridge *= 100) {
    const auto [factor, info] = at::linalg_cholesky_ex(matrix + ridge * identity);
    if (info.item<int32_t>() != 0) continue;
    factor_ = factor;
    return;
  }
}
Tensor Factored::solve(const Tensor& right) const {
  return scale_ * at::cholesky_solve((scale_ * right).unsqueeze(-1), factor_).squeeze(-1);
}
Tensor Factored::half_inverse(const Tensor& right) const {
  return (scale_.unsqueeze(-1) * at::linalg_solve_triangular(factor_.mT(), right, /*upper=*/true)).contiguous();
}

Tensor symmetric_solve(const Tensor& hessian, const Tensor& right, double cutoff) {
  const auto [values, vectors] = at::linalg_eigh(hessian);
  const Tensor kept = values.abs() > cutoff * values.abs().amax(-1, /*keepdim=*/true),
               components = at::matmul(vectors.mT(), right.unsqueeze(-1)).squeeze(-1);
  return at::matmul(vectors, (at::where(kept, components / values, 0)).unsqueeze(-1)).squeeze(-1);
}

Tensor whitening(const Tensor& gram, double cutoff) {
  const Tensor scale = scaling(gram);
  if (!scale.defined()) return at::eye(gram.size(0), gram.options());
  const auto [values, vectors] = at::linalg_eigh(scaled(gram, scale));
  const Tensor kept = (values > cutoff * values.max()).nonzero().squeeze(-1);
  return scale.unsqueeze(-1) * vectors.index_select(1, kept) / values.index_select(0, kept).sqrt();
}

}  // namespace torch_rescaled::solvers
