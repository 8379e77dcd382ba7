// SPDX-License-Identifier: BSD-3-Clause
// An objective of X [d1, d2] (and others behind it) as one of factors: X = P Q^T with P [d1, r], Q [d2, r].
#pragma once
#include "objective.h"

namespace torch_rescaled::solvers {

class FactoredObjective : public Objective {
 public:
  FactoredObjective(const Objective& whole, int64_t rows, int64_t columns, int64_t rank)
      : whole_(whole), rows_(rows), columns_(columns), rank_(rank) {}
  int64_t size() const override { return whole_.size() - rows_ * columns_ + (rows_ + columns_) * rank_; }
  std::unique_ptr<Place> at(const Tensor& unknowns) const override;
  double change(const Tensor& unknowns, const Tensor& direction) const override;
  double logits(const Tensor& unknowns) const override { return whole_.logits(product(unknowns)); }
  bool has_hessian() const override { return whole_.has_hessian(); }
  double epsilon() const override { return whole_.epsilon(); }
  double elements() const override { return whole_.elements(); }

  // The unknowns of the whole, and its tangent.
  Tensor product(const Tensor& unknowns) const;
  Tensor tangent(const Tensor& unknowns, const Tensor& direction) const;
  // Factors of equal size whose product is the best of this rank to X in the metric of the logits, with no column below
  // `least` there.
  static Tensor factors(const Tensor& X, const Tensor& gram_left, const Tensor& gram_right, int64_t rank, double least);

 private:
  friend class FactoredPlace;
  Tensor left(const Tensor& v) const { return v.slice(0, 0, rows_ * rank_).view({rows_, rank_}); }
  Tensor right(const Tensor& v) const {
    return v.slice(0, rows_ * rank_, (rows_ + columns_) * rank_).view({columns_, rank_});
  }
  Tensor rest(const Tensor& v) const { return v.slice(0, (rows_ + columns_) * rank_); }

  const Objective& whole_;
  int64_t rows_, columns_, rank_;
};

}  // namespace torch_rescaled::solvers
