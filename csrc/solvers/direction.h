// SPDX-License-Identifier: BSD-3-Clause
// Newton directions from a gradient and a d x d Hessian: float64, on the CPU, scaled by the Hessian's diagonal.
#pragma once
#include <ATen/core/Tensor.h>

namespace torch_rescaled::solvers {

using at::Tensor;

// As float64 on the CPU.
inline Tensor wide(const Tensor& t) {
  return t.to(at::TensorOptions().device(at::kCPU).dtype(at::kDouble)).contiguous();
}

struct Direction {
  Tensor step;             // -(H + damping diag H)^-1 g; undefined where there is none
  double shift = 0;        // what had to be added to the scaled Hessian beyond the damping
  bool deficient = false;  // the Hessian is singular to rounding: the step is the shortest one (in the scaled norm)
};

// One try at it, where the Hessian is, without a look at any number: for a GPU, which a look waits for.
struct Attempt {
  Tensor step;    // [d]
  Tensor checks;  // [kChecks]: 0 where there is a factor, its least pivot, 1 where the step is finite
  static constexpr int64_t kChecks = 3;
};
Attempt attempted_direction(const Tensor& hessian, const Tensor& gradient, double damping);
// Whether it is the one that newton_direction finds at once, by its checks.
bool attempt_serves(const double* checks, int64_t columns, double damping);

// hessian [d, d], gradient [d]. An indefinite Hessian is shifted until it is not.
Direction newton_direction(const Tensor& hessian, const Tensor& gradient, double damping);

// A positive semidefinite Hessian scaled by its diagonal, plus at least `ridge`, by Cholesky: H = S^-1 L L^T S^-1.
class Factored {
 public:
  Factored(const Tensor& hessian, double ridge);
  explicit operator bool() const { return factor_.defined(); }
  Tensor solve(const Tensor& right) const;         // H^-1 right, [d]
  Tensor half_inverse(const Tensor& right) const;  // S L^-T right, [d, m]

 private:
  Tensor scale_, factor_;
};

// H^-1 g for symmetric H [*, d, d] of any sign, g [*, d]; directions in which H is singular to rounding are left out.
Tensor symmetric_solve(const Tensor& hessian, const Tensor& right, double cutoff);

// W [d, r] with W^T gram W = 1 for the directions above `cutoff` of the scaled gram's largest eigenvalue.
Tensor whitening(const Tensor& gram, double cutoff);

}  // namespace torch_rescaled::solvers
