// SPDX-License-Identifier: BSD-3-Clause
// The metric of the unknowns of a map: how damping measures a step, and what preconditions conjugate gradients.
#pragma once
#include <vector>

#include "direction.h"

namespace torch_rescaled::solvers {

// Of unknowns V [rows, columns]: a curvature of about left V right + penalty gram_left V gram_right, and how far V
// moves the logits, <V, gram_left V gram_right>. All symmetric, positive semidefinite, float64.
struct KroneckerBlock {
  Tensor left, right, gram_left, gram_right;
  double penalty = 0;
};

class Metric {
 public:
  // `epsilon`: of the arithmetic of the products.
  Metric(const std::vector<KroneckerBlock>& blocks, double epsilon);
  Tensor weigh(const Tensor& v) const;                  // what a damping of 1 adds to the curvature's product
  Tensor solve(const Tensor& v, double damping) const;  // about (curvature + damping)^-1 v

 private:
  struct Factored {
    Tensor gram_left, gram_right;
    Tensor left, right;  // both forms are diagonal in left [rows, r], right [columns, s]: one where the logits' is 1
    Tensor values;       // [r, s] of the curvature
    double typical;
  };
  std::vector<Factored> blocks_;
};

}  // namespace torch_rescaled::solvers
