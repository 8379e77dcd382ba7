// SPDX-License-Identifier: BSD-3-Clause
// Gauss-Newton's Hessian of a regression by a sample of its rows. It is the sum of J_i J_i^T over rows, with
// J_i = sqrt(w_i) (p_i a_i - v_i h), h = A^T p (v: b, u over its sum, or none), and the penalty's rows; the sample's
// sum keeps the exact h, so it is a sum of squares too: positive semidefinite. docs/solver.md.
#pragma once
#include "direction.h"
#include "regression_data.h"
#include "sampling.h"

namespace torch_rescaled::solvers {

struct Jacobian {
  Tensor rows;     // RegressionRows
  Tensor squares;  // w_i v_i^2 [n]; undefined: v = 0
  Tensor side;     // h, float64 on the CPU
  bool centered;   // v goes with p: rows matter by how far they are from their mean
};

// At logits whose RegressionRows are `rows`: a read of A, in which the gradient is found too where it is asked for.
Jacobian jacobian(const RegressionData&, const Tensor& rows, const Tensor& logits, const Point&,
                  const RegressionSettings&, Tensor* gradient = nullptr);

struct SampledHessian {
  Tensor hessian, noise;  // as of RegressionCurvature; undefined: there is no sample
  Tensor gradient;        // sum of p_i w_i r_i a_i, where asked for
  double inner_sum = 0;   // of p_i w_i r_i; that of J_i r_i has v_i w_i r_i h too
};

// What is kept of the rows between draws.
struct RowSizes {
  static constexpr int64_t kSketch = 8;  // vectors of Johnson and Lindenstrauss
  bool known = false;
  Tensor sizes;   // [n] float64: squares of the rows' lengths in some metric
  Tensor metric;  // [d, kSketch] float64 on the CPU: |a|^2 = |metric^T a|^2
};

class RowSampler {
 public:
  // `point`: how many there were before this one. At one point the same rows are drawn again. `reads`: of A, counted
  // on.
  RowSampler(const RegressionData& data, const Sampling& sampling, RowSizes& sizes, int64_t point, double& reads)
      : data_(data), sampling_(sampling), sizes_(sizes), point_(point), reads_(reads) {}

  // Rows' sizes are found first, by a read, where the sampling takes them and they are not known. `inner` [n]: p_i w_i
  // r_i, where the gradient is asked for.
  SampledHessian hessian(const Jacobian&, const Tensor& inner = {});
  // A problem of rows drawn uniformly, sums over which stand for those over all rows.
  RegressionPoint subset(bool normalized);

 private:
  Tensor chances(const Jacobian&) const;
  void size_rows(const Jacobian&);
  SampledHessian sampled(const Jacobian&, const Tensor& inner, const Tensor& chances, uint64_t seed);
  uint64_t seed(int64_t use) const;
  int64_t count() const { return sampling_.rows_of(data_.rows(), data_.columns()); }

  const RegressionData& data_;
  const Sampling& sampling_;
  RowSizes& sizes_;
  const int64_t point_;
  double& reads_;
};

}  // namespace torch_rescaled::solvers
