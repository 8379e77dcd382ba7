// SPDX-License-Identifier: BSD-3-Clause
// Limited-memory BFGS around a fixed Hessian: float64, on the CPU.
#pragma once
#include <ATen/core/Tensor.h>

#include "direction.h"

namespace torch_rescaled::solvers {

// What the steps since `hessian` was computed have taught about it. All in one unit of the loss: e^log_scale.
struct Memory {
  static constexpr int64_t kPairs = 10;
  double log_scale = 0;
  int64_t count = 0;             // pairs ever taken in; the last kPairs are kept, pair i in row i % kPairs
  Tensor hessian, noise;         // [d, d], [d] squares of the gradient's rounding errors over eps^2
  Tensor steps, changes, scale;  // [kPairs, d] of x and of the gradient, [kPairs] their products

  void begin(const Tensor& hessian, const Tensor& noise, double log_scale);
  // The quasi-Newton step, as newton_direction's.
  Direction direction(const Tensor& gradient, double damping) const;
  // Left out where the curvature along the step is not positive.
  void add(const Tensor& step, const Tensor& change);

  static int64_t size(int64_t columns) { return 2 + columns * (columns + 1 + 2 * kPairs) + kPairs; }
  Tensor pack() const;
  static Memory unpack(const Tensor& packed, int64_t columns);
};

}  // namespace torch_rescaled::solvers
