// SPDX-License-Identifier: BSD-3-Clause
// The matrix regression's loss (docs/math.md (12)) of X [d1, d2] as an objective.
#pragma once
#include "../ops/matrix_regression/problem.h"
#include "group.h"
#include "objective.h"

namespace torch_rescaled::solvers {

using rescaled::ops::MatrixPoint;
using rescaled::ops::MatrixSettings;

// Samples [s, ...] share X; their losses are summed. `point` has all but the query: key [s, n2, d2], target, mask.
struct MatrixData {
  Tensor A1;  // [s, n1, d1]; all in the type of the arithmetic
  MatrixPoint point;
  double regularization = 0;
  Group group;
};

// A1^T A1 and A2^T A2, summed over samples and the group (A2's: their mean), float64, and how many logits there are.
struct Grams {
  Tensor left, right;
  double logits = 1;
  Grams(const Tensor& A1, const Tensor& A2, const Group&);
  // <V, left V right> / logits: of one sample the mean square of A1 V A2^T.
  double mean_square(const Tensor& V) const;
};

// Adds 1/2 weight |A1 X A2^T|^2.
class Penalty {
 public:
  Penalty(const Tensor& A1, const Tensor& A2, double weight, const Group&);
  bool there() const { return weight_ != 0; }
  double weight(double log_scale) const;  // in units of e^log_scale
  Tensor product(const Tensor& V) const;  // (A1^T A1) V (A2^T A2), summed: the gradient of weight 1
  Tensor matrix() const;                  // [d1 d2, d1 d2] of that product
  double loss(const Tensor& X) const { return .5 * (X * product(X)).sum().item<double>(); }  // of weight 1

 private:
  Tensor left_, right_;  // of each sample; undefined where there is no penalty
  double weight_;
  Group group_;
};

class MatrixObjective : public Objective {
 public:
  MatrixObjective(MatrixData data, MatrixSettings settings, Grams grams);
  int64_t size() const override { return rows_ * columns_; }
  std::unique_ptr<Place> at(const Tensor& unknowns) const override;
  double change(const Tensor&, const Tensor& direction) const override;
  double logits(const Tensor& unknowns) const override { return change({}, unknowns); }
  bool has_hessian() const override { return true; }
  bool has_matrix() const override { return true; }
  double epsilon() const override;
  double elements() const override { return grams_.logits; }
  const Grams& grams() const { return grams_; }

 private:
  friend class MatrixPlace;
  MatrixData data_;
  MatrixSettings settings_;
  int64_t rows_, columns_;
  Grams grams_;
  Penalty penalty_;
};

}  // namespace torch_rescaled::solvers
