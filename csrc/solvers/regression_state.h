// SPDX-License-Identifier: BSD-3-Clause
// What a solve knows at a point, and hands from one iteration to the next.
#pragma once
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "../ops/regression/resident.h"
#include "direction.h"
#include "regression.h"

namespace torch_rescaled::solvers {
namespace {

using Rows = rescaled::RegressionRows;
using Numbers = rescaled::RegressionStatistics;
using Model = rescaled::RegressionModel;

constexpr double kInfinity = std::numeric_limits<double>::infinity();

template <size_t kCount>
std::array<double, kCount> numbers(const Tensor& t) {
  const Tensor host = wide(t);
  std::array<double, kCount> out{};
  std::copy_n(host.const_data_ptr<double>(), kCount, out.begin());
  return out;
}
using Point = std::array<double, Numbers::count>;

// How much lower the loss is at `to`, in units of the loss's scale at `from`; -inf where it is not a number.
double gain(const Point& from, const Point& to) {
  if (!std::isfinite(to[Numbers::loss])) return -kInfinity;
  const double by = std::min(to[Numbers::log_scale] - from[Numbers::log_scale], 700.);
  return from[Numbers::loss] - to[Numbers::loss] * std::exp(by);
}
double log_loss(const Point& p) { return std::log(p[Numbers::loss]) + p[Numbers::log_scale]; }

// The quadratic models of the gain along a direction, from its products with the rows.
struct Models {
  double slope, gauss_newton, full, largest;
  Models(const std::array<double, Model::count>& m, double square)
      : slope(m[Model::slope]),
        gauss_newton(m[Model::diagonal] - 2 * m[Model::p] * m[Model::q] + square * m[Model::p] * m[Model::p]),
        full(gauss_newton + m[Model::diagonal_rest] - 2 * m[Model::p] * m[Model::q_rest]),
        largest(m[Model::largest]) {}
  double predicted(double step, bool with_full) const {
    return -(step * slope + .5 * step * step * (with_full ? full : gauss_newton));
  }
};

// Everything that an iteration hands to the next, as numbers; `x`, `anchor` and `logits` beside them.
struct State {
  enum : int64_t {
    status,
    phase,
    full_mode,
    damping,
    iterations,
    since_refresh,
    flat,
    anchor_log_sum,
    reads,
    grams,
    certificate,
    deficient,
    gradient,
    seconds_reads,
    seconds_grams,
    seconds,
    count
  };
  static constexpr double kNormalizedFirst = 0, kFinal = 1;  // of `phase`
  std::array<double, count> number{};
  Tensor x, anchor, logits;  // anchor: the normalized form's solution
  double& operator[](int64_t i) { return number[static_cast<size_t>(i)]; }
  double operator[](int64_t i) const { return number[static_cast<size_t>(i)]; }

  Tensor pack() const {
    return at::cat(
        {at::tensor(at::ArrayRef<double>(number.data(), number.size())), wide(x), wide(anchor), wide(logits)});
  }
  static State unpack(const Tensor& packed, const at::TensorOptions& options, int64_t d, int64_t n) {
    State s;
    s.number = numbers<count>(packed);
    const auto part = [&](int64_t first, int64_t size) { return packed.slice(0, first, first + size).to(options); };
    s.x = part(count, d), s.anchor = part(count + d, d), s.logits = part(count + 2 * d, n);
    return s;
  }
};

}  // namespace
}  // namespace torch_rescaled::solvers
