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

// A1^T A1 and A2^T A2, summed over samples and the group, float64, and how many logits there are.
struct Grams {
  Tensor left, right;
  double logits = 1;
  Grams(const Tensor& A1, const Tensor& A2, const Group&);
  // <V, left V right> / logits: of one sample the mean square of A1 V A2^T.
  double mean_square(const Tensor& V) const;
};

class MatrixObjective : public Objective {
 public:
  MatrixObjective(MatrixData data, MatrixSettings settings);
  int64_t size() const override { return rows_ * columns_; }
  std::unique_ptr<Place> at(const Tensor& unknowns) const override;
  double change(const Tensor&, const Tensor& direction) const override;
  double logits(const Tensor& unknowns) const override { return change({}, unknowns); }
  bool has_hessian() const override { return true; }
  bool has_matrix() const override { return true; }
  double epsilon() const override;
  double elements() const override { return grams_.logits; }

 private:
  friend class MatrixPlace;
  MatrixData data_;
  MatrixSettings settings_;
  int64_t rows_, columns_;
  Grams grams_;
};

}  // namespace torch_rescaled::solvers
