// SPDX-License-Identifier: BSD-3-Clause
// Starting points from b alone, by kind: never x = 0, where cosh is stationary and sinh has a minimum of no interest.
#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/asinh.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/exp2.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linspace.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <cmath>
#include <limits>

#include "quantiles.h"
#include "regression_sampler.h"

namespace torch_rescaled::solvers {
namespace {

using Statistics = rescaled::RegressionStatistics;

constexpr double kCutoff = 1e-12;
constexpr int64_t kScales = 24;  // of sinh's starts

// Least squares of log b in the metric of Gauss-Newton's Hessian where u is unit b: one step from there. In the
// normalized form the metric does not see an intercept. Rows with b <= 0 count as 0.
Start log_start(const RegressionData& data, const RegressionSettings& settings, RowSampler* sampler) {
  Start start;
  const RegressionPoint& x = data.problem();
  Tensor f = x.b.clamp_min(0);
  const double sum = data.sum(f.sum()).item<double>();
  if (!(sum > 0)) return start;
  const bool normalized = settings.form == "normalized";
  if (normalized) f = f / sum;
  const Tensor wf = x.row_weight.defined() ? x.row_weight * f : f, zero = at::zeros_like(f);
  Tensor aim = at::where(f > 0, f, 1).log(), diagonal = wf * f;
  if (normalized) aim = aim - data.sum((f * aim).sum()).item<double>();
  const Tensor inner = f * wf * aim;
  aim = inner;
  if (normalized) aim = aim - f * data.sum(aim.sum()).item<double>();
  if (x.penalty_weight.defined()) diagonal = diagonal + x.penalty_weight.square();
  const Tensor p = normalized ? f : zero, q = normalized ? wf * f : zero, noise = (2 * f * wf).square();
  const double square = normalized ? data.sum((wf * f).sum()).item<double>() : 0;
  const Tensor rows = at::stack({aim, diagonal, zero, p, q, zero, noise});
  if (sampler != nullptr) {  // least squares of a sample alone
    const Tensor side =
        normalized ? data.transposed(p.unsqueeze(0), false)[0] : at::zeros({data.columns()}, at::kDouble);
    start.reads = normalized;
    const SampledHessian found =
        sampler->hessian({rows, normalized ? wf * f : Tensor(), side, /*centered=*/true}, inner);
    start.model = {found.gradient, found.hessian, found.noise};
    if (found.gradient.defined() && normalized) start.model.gradient = found.gradient - side * found.inner_sum;
  }
  if (!start.model.hessian.defined()) {
    start.model = data.curvature(rows, square, "gauss_newton");
    start.reads += 1, start.grams = 1;
  }
  const Tensor W = whitening(start.model.hessian, kCutoff);
  start.x = at::matmul(W, at::matmul(W.mT(), start.model.gradient));
  return start;
}

// The direction along which |z| goes with the ranks of b, in coordinates where A has orthonormal columns; then its
// length by the loss.
Start spectral_start(const RegressionData& data, const RegressionSettings& settings) {
  Start found;
  const RegressionPoint& x = data.problem();
  const int64_t n = data.rows();
  const Tensor ones = at::ones_like(x.b),
               order = data.group().single() ? x.b.argsort().argsort() : Quantiles(x.b, data.group()).ranks(x.b);
  const Tensor rank = order.to(x.b.scalar_type()) / n;
  const Tensor W = whitening(data.weighted_gram(ones, ones, ones, 0).hessian, kCutoff);
  const Tensor ranked = data.weighted_gram(ones, rank, ones, 0).hessian;
  found.reads = found.grams = 2;
  if (W.size(1) == 0 || !ranked.isfinite().all().item<bool>()) return found;
  const Tensor vectors = std::get<1>(at::linalg_eigh(at::matmul(W.mT(), at::matmul(ranked, W))));
  Tensor start = at::matmul(W, vectors.select(1, -1));
  const Tensor z = data.matvec(start.to(x.b.options()));
  found.reads += 1;
  const double size = std::sqrt(data.sum(z.square().sum()).item<double>() / static_cast<double>(n));
  if (!(size > 0)) return found;
  const Tensor lengths = at::exp2(at::arange(-3, 4.25, .5, at::kDouble)) / size;
  found.x = start * lengths[data.losses_along(z, lengths.to(x.b.device()), settings).argmin()];
  return found;
}

// How well u at these logits fits b up to a factor: the square of the cosine of their angle, and 1 more where the
// factor has the sign of the sum of u. Elsewhere the normalized form has its pole, a sum of 0, between these logits and
// a fit.
double likeness(const Tensor& logits, const RegressionData& data, const std::string& kind) {
  const Point s = data.point(logits, {kind, "rescaled"});
  const double unit = s[Statistics::unit], square = s[Statistics::square], along = s[Statistics::beta] + unit * square;
  const double cosine = along * along / ((s[Statistics::magnitude] - unit * unit * square) * square),
               found = cosine + (along * unit > 0);
  return std::isfinite(found) ? found : -1;
}

// The median of |b|, or where that is 0 the largest.
double typical_size(const RegressionData& data) {
  const Tensor sizes = data.problem().b.abs();
  if (!data.group().single()) {
    const Quantiles all(sizes, data.group());
    return all.median() > 0 ? all.median() : all.largest();
  }
  const double median = sizes.median().item<double>();
  return median > 0 ? median : sizes.max().item<double>();
}

// Least squares of asinh(k b) for many k, the best by its likeness; in the plain form k = 1.
Start asinh_start(const RegressionData& data, const RegressionSettings& settings) {
  Start found;
  const RegressionPoint& x = data.problem();
  const double size = typical_size(data);
  if (!(size > 0)) return found;
  const Tensor scales = settings.form == "plain" ? at::ones({1}, x.b.options())
                                                 : at::exp2(at::linspace(-3, 14, kScales, x.b.options())) / size;
  const Tensor right = data.transposed(at::asinh(scales.unsqueeze(-1) * x.b), false).mT();
  const Tensor ones = at::ones_like(x.b);
  const Tensor W = whitening(data.weighted_gram(ones, ones, ones, 0).hessian, kCutoff);
  const Tensor starts = at::matmul(W, at::matmul(W.mT(), data.sum(right)));  // [d, K]
  found.reads = 2, found.grams = 1, found.x = starts.select(1, 0);
  if (starts.size(1) == 1) return found;
  const Tensor z = data.products(starts.to(x.b.options()));
  found.reads += 1;
  double best = -1;
  for (int64_t k = 0; k < starts.size(1); ++k) {
    const double fit = likeness(z[k], data, settings.kind);
    if (fit > best) best = fit, found.x = starts.select(1, k);
  }
  return found;
}

}  // namespace

Start starting_point(const RegressionData& data, const RegressionSettings& settings, RowSampler* sampler,
                     bool by_columns) {
  const RegressionPoint& x = data.problem();
  if (sampler != nullptr && settings.kind != "exp") {
    const RegressionPoint subset = sampler->subset(settings.form == "normalized");
    const Group alone;
    Start start = starting_point(RegressionData(subset, alone), settings);
    start.reads = start.grams = 0;
    return start;
  }
  const int64_t d = data.columns();
  Start start;
  const bool finite = data.sum(x.b.isfinite().logical_not().sum()).item<double>() == 0;
  if (by_columns)
    start = start_without_square(data, settings);
  else if (data.rows() > 0 && d > 0 && finite)
    start = settings.kind == "exp"    ? log_start(data, settings, sampler)
            : settings.kind == "cosh" ? spectral_start(data, settings)
                                      : asinh_start(data, settings);
  if (!start.x.defined() || !start.x.isfinite().all().item<bool>())
    start.x = at::linspace(.5, 1, d, at::kDouble) / (d > 0 ? d : 1);  // nothing to go by
  start.x = data.first(start.x.to(x.b.options()));
  return start;
}

}  // namespace torch_rescaled::solvers
