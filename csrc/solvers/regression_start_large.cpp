// SPDX-License-Identifier: BSD-3-Clause
// Starting points without d x d matrices: those of regression_start.cpp, roughly, by products with A and A^T.
#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/asinh.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/log.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>

#include "regression_data.h"

namespace torch_rescaled::solvers {
namespace {

constexpr int kSteps = 20;  // two reads each
constexpr double kEnough = 1e-2;

class LargeStart {
 public:
  explicit LargeStart(const RegressionData& data) : data_(data) {}
  int64_t reads() const { return reads_; }

  // Least squares of `aim` with these weights, by conjugate gradients scaled by columns: a start needs no digits.
  Tensor least_squares(const Tensor& weight, const Tensor& aim) {
    const Tensor inverse = column_scale(weight);
    Tensor rest = transposed(weight * aim), x = at::zeros_like(rest), z = inverse * rest, direction = z;
    double size = at::dot(rest, z).item<double>();
    const double enough = kEnough * kEnough * size;
    for (int i = 0; i < kSteps && size > enough; ++i) {
      const Tensor product = transposed(weight * matvec(direction));
      const double curved = at::dot(direction, product).item<double>();
      if (!(curved > 0)) break;
      x = x + size / curved * direction, rest = rest - size / curved * product;
      z = inverse * rest;
      const double next = at::dot(rest, z).item<double>();
      direction = z + next / size * direction, size = next;
    }
    return x;
  }

  // The direction along which |z| goes with the ranks of b.
  Tensor along_ranks() {
    const Tensor& b = data_.problem().b;
    const Tensor rank = b.argsort().argsort().to(b.scalar_type()) / b.size(0) - .5;
    const Tensor inverse = column_scale(at::ones_like(b));
    Tensor v = at::linspace(.5, 1, inverse.size(0), at::kDouble) * inverse.sqrt();
    for (int i = 0; i < kSteps; ++i) {
      v = inverse * transposed(rank * matvec(v)) + .5 * v;  // shifted: the largest eigenvalue, not the smallest
      v = v / v.norm();
    }
    return v;
  }

  // The best length of a direction, by the loss.
  Tensor scaled(const Tensor& direction, const RegressionSettings& settings) {
    const Tensor z = matvec(direction);
    const double size = z.square().mean().sqrt().item<double>();
    if (!(size > 0)) return direction;
    const Tensor lengths = at::exp2(at::arange(-3, 4.25, .5, at::kDouble)) / size;
    return direction * lengths[data_.losses_along(z, lengths.to(z.device()), settings).argmin()];
  }

 private:
  Tensor matvec(const Tensor& v) { return reads_ += 1, data_.matvec(v.to(data_.options())); }
  Tensor transposed(const Tensor& v) { return reads_ += 1, data_.transposed(v.unsqueeze(0), false)[0]; }
  Tensor column_scale(const Tensor& weight) {
    reads_ += 1;
    const Tensor squares = data_.transposed(weight.unsqueeze(0), true)[0];
    return at::where(squares > 0, 1 / squares, 0);
  }
  const RegressionData& data_;
  int64_t reads_ = 0;
};

}  // namespace

Start start_without_square(const RegressionData& data, const RegressionSettings& settings) {
  const RegressionPoint& x = data.problem();
  Start start;
  if (x.b.numel() == 0 || !x.b.isfinite().all().item<bool>()) return start;
  LargeStart by(data);
  const Tensor ones = at::ones_like(x.b);
  if (settings.kind == "exp") {
    const Tensor f = x.b.clamp_min(0), weight = x.row_weight.defined() ? x.row_weight * f * f : f * f,
                 sum = weight.sum();
    Tensor aim = at::where(f > 0, f, 1).log();
    if (settings.form == "normalized") aim = aim - (weight * aim).sum() / sum;
    if (sum.item<double>() > 0) start.x = by.least_squares(weight / sum, aim);
  } else if (settings.kind == "cosh") {
    start.x = by.scaled(by.along_ranks(), settings);
  } else {
    const double median = x.b.abs().median().item<double>();
    const bool plain = settings.form == "plain";
    start.x = by.least_squares(ones, at::asinh(plain || !(median > 0) ? x.b : x.b / median));
    if (!plain) start.x = by.scaled(start.x, settings);
  }
  start.reads = by.reads();
  return start;
}

}  // namespace torch_rescaled::solvers
