// SPDX-License-Identifier: BSD-3-Clause
// What a solve knows at a point, and hands from one iteration to the next.
#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/ops/abs.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "direction.h"
#include "quasi_newton.h"
#include "regression_data.h"
#include "regression_sampler.h"

namespace torch_rescaled::solvers {

using Rows = rescaled::RegressionRows;
using Numbers = rescaled::RegressionStatistics;
using Model = rescaled::RegressionModel;

inline constexpr double kInfinity = std::numeric_limits<double>::infinity();

// How much lower the loss is at `to`, in units of the loss's scale at `from`; -inf where it is not a number.
inline double gain(const Point& from, const Point& to) {
  if (!std::isfinite(to[Numbers::loss])) return -kInfinity;
  const double by = std::min(to[Numbers::log_scale] - from[Numbers::log_scale], 700.);
  return from[Numbers::loss] - to[Numbers::loss] * std::exp(by);
}
inline double log_loss(const Point& p) { return std::log(p[Numbers::loss]) + p[Numbers::log_scale]; }

// The largest |g_k| over the root of the sum of squares of its terms: eps at the best there is.
inline Tensor relative_sizes(const Tensor& gradient, const Tensor& noise) {
  return at::where(gradient == 0, 0, gradient.abs() / noise.sqrt());
}
inline double relative_size(const Tensor& gradient, const Tensor& noise) {
  return gradient.numel() == 0 ? 0 : relative_sizes(gradient, noise).max().item<double>();
}

// The quadratic models of the gain along a direction, from its products with the rows.
struct Models {
  double slope, gauss_newton, full, largest;
  Models(const ModelNumbers& m, double square)
      : slope(m[Model::slope]),
        gauss_newton(m[Model::diagonal] - 2 * m[Model::p] * m[Model::q] + square * m[Model::p] * m[Model::p]),
        full(gauss_newton + m[Model::diagonal_rest] - 2 * m[Model::p] * m[Model::q_rest]),
        largest(m[Model::largest]) {}
  double predicted(double step, bool with_full) const {
    return -(step * slope + .5 * step * step * (with_full ? full : gauss_newton));
  }
};

// Everything that an iteration hands to the next.
struct State {
  enum : int64_t {
    status,
    phase,
    method,    // SolveMethod
    exact,     // 1: the next step is Newton's, 2: and all that follow
    resident,  // 1: `logits` and `point` belong to `x`; 0: `gradient` and `point` do
    full_mode,
    damping,
    iterations,
    since_refresh,
    flat,
    slow,
    promised,
    anchor_log_sum,
    reads,
    grams,
    certificate,
    gram_ratio,
    deficient,
    sampling,   // 1: Hessians are those of samples
    samples,    // drawn and used
    points,     // evaluated: with the seed, what rows are drawn
    resampled,  // times that a sample's Hessian gained too little
    sized,      // `sizes` are known
    seed,
    relative_gradient,
    seconds_reads,
    seconds_grams,
    seconds,
    count
  };
  static constexpr double kNormalizedFirst = 0, kFinal = 1;  // of `phase`
  std::array<double, count> number{};
  Point point{};
  Tensor x, anchor, logits;  // anchor: the normalized form's solution
  Tensor gradient;           // float64, in the units of the point
  Memory memory;
  RowSizes sizes;
  double& operator[](int64_t i) { return number[static_cast<size_t>(i)]; }
  double operator[](int64_t i) const { return number[static_cast<size_t>(i)]; }

  // What a method keeps.
  struct Parts {
    bool memory, sizes;
    Parts(const std::string& method, bool wide)
        : memory(method != "newton" && method != "cg" && !(wide && method == "auto")),
          sizes(method != "newton" && method != "lbfgs") {}
  };
  static int64_t size(int64_t d, int64_t n, Parts with) {
    return int64_t{count} + int64_t{Numbers::count} + n + 2 * d + (with.memory ? d + Memory::size(d) : 0) +
           (with.sizes ? n + d * RowSizes::kSketch : 0);
  }
  // On the device of the logits, its longest part.
  Tensor pack(Parts with) const {
    std::vector<Tensor> parts = {at::tensor(at::ArrayRef<double>(number.data(), number.size())),
                                 at::tensor(at::ArrayRef<double>(point.data(), point.size())), x, anchor, logits};
    if (with.memory) parts.insert(parts.end(), {gradient, memory.pack()});
    if (with.sizes) parts.insert(parts.end(), {sizes.sizes, sizes.metric.flatten()});
    for (Tensor& part : parts) part = part.to(logits.options().dtype(at::kDouble));
    return at::cat(parts);
  }
  static State unpack(const Tensor& packed, const at::TensorOptions& options, int64_t d, int64_t n, Parts with) {
    State s;
    int64_t next = 0;
    // Copies: where memory begins within a cache line shows in the last digits of a product.
    const auto part = [&](int64_t size) {
      next += size;
      return packed.slice(0, next - size, next).clone();
    };
    s.number = numbers<count>(part(count)), s.point = numbers<Numbers::count>(part(Numbers::count));
    s.x = part(d).to(options), s.anchor = part(d).to(options), s.logits = part(n).to(options);
    if (with.memory) s.gradient = wide(part(d)), s.memory = Memory::unpack(wide(part(Memory::size(d))), d);
    if (with.sizes) s.sizes = {s[sized] != 0, part(n), wide(part(d * RowSizes::kSketch)).view({d, RowSizes::kSketch})};
    return s;
  }
};

}  // namespace torch_rescaled::solvers
