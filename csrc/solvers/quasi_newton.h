// SPDX-License-Identifier: BSD-3-Clause
// Limited-memory BFGS: float64, on the CPU.
#pragma once
#include <ATen/core/Tensor.h>
#include <ATen/ops/dot.h>

#include <algorithm>
#include <vector>

#include "direction.h"

namespace torch_rescaled::solvers {

// The newest steps and what they did to the gradient, in one unit of the loss: pair i in row i % kept.
struct Pairs {
  int64_t count = 0;             // ever taken in
  Tensor steps, changes, scale;  // [kept, d] of the unknowns and of the gradient, [kept] their products

  void begin(int64_t kept, int64_t columns);
  // Left out where the curvature along the step is not positive.
  void add(const Tensor& step, const Tensor& change);
  // Two loops over the pairs, newest to oldest and back, around -inner^-1 q = inner(q), which may be undefined.
  template <class Inner>
  Tensor direction(const Tensor& gradient, Inner inner) const;

  static int64_t size(int64_t kept, int64_t columns) { return 1 + kept * (2 * columns + 1); }
  Tensor pack() const;
  static Pairs unpack(const Tensor& packed, int64_t kept, int64_t columns);
};

// What the steps since `hessian` was computed have taught about it. All in one unit of the loss: e^log_scale.
struct Memory {
  static constexpr int64_t kPairs = 10;
  double log_scale = 0;
  Tensor hessian, noise;  // [d, d], [d] squares of the gradient's rounding errors over eps^2
  Pairs pairs;

  void begin(const Tensor& hessian, const Tensor& noise, double log_scale);
  // The quasi-Newton step, as newton_direction's.
  Direction direction(const Tensor& gradient, double damping) const;

  static int64_t size(int64_t columns) { return 1 + columns * (columns + 1) + Pairs::size(kPairs, columns); }
  Tensor pack() const;
  static Memory unpack(const Tensor& packed, int64_t columns);
};

template <class Inner>
Tensor Pairs::direction(const Tensor& gradient, Inner inner) const {
  Tensor q = gradient.clone();
  const double* const product = scale.const_data_ptr<double>();
  const int64_t kept = scale.size(0), oldest = std::max<int64_t>(count - kept, 0);
  std::vector<double> weights(static_cast<size_t>(kept));
  for (int64_t i = count - 1; i >= oldest; --i) {
    const int64_t at = i % kept;
    const double weight = at::dot(steps[at], q).item<double>() / product[at];
    weights[static_cast<size_t>(at)] = weight;
    q.sub_(changes[at], weight);
  }
  Tensor step = inner(q);
  if (!step.defined()) return step;
  for (int64_t i = oldest; i < count; ++i) {
    const int64_t at = i % kept;
    const double back = at::dot(changes[at], step).item<double>() / product[at];
    step.sub_(steps[at], weights[static_cast<size_t>(at)] + back);
  }
  return step;
}

}  // namespace torch_rescaled::solvers
