// SPDX-License-Identifier: BSD-3-Clause
// 1/2 |O - B|^2 of one attention layer's outputs O, rows i of u(A1 X A2^T) A3 Y over their normalizers (docs/math.md
// (15)), as an objective of X [d1, d2] with the best Y for it, or of X and Y.
#pragma once
#include "../ops/attention/primitives.h"
#include "matrix_objective.h"

namespace torch_rescaled::solvers {

// Samples [s, ...] share X and Y; their losses are summed.
struct AttentionData {
  Tensor A1, A2, A3, B, mask;  // [s, n1, d1], [s, n2, d2], [s, n2, d3], [s, n1, dv], in the type of the arithmetic
  bool is_causal = false, joint = false;
  std::string kind = "exp", form = "normalized";
  double regularization = 0;  // adds 1/2 regularization |A1 X A2^T|^2
  Group group;
};

// Whether products with the curvature read Jacobians [outputs, columns] of all rows, or pass over the map.
bool keeps_jacobians(int64_t rows, int64_t keys, int64_t columns, int64_t outputs);

class AttentionObjective : public Objective {
 public:
  AttentionObjective(AttentionData data, Grams grams);
  int64_t size() const override { return map_size() + (data_.joint ? output_size() : 0); }
  int64_t map_size() const { return data_.A1.size(-1) * data_.A2.size(-1); }
  int64_t output_size() const { return data_.A3.size(-1) * data_.B.size(-1); }
  std::unique_ptr<Place> at(const Tensor& unknowns) const override;
  double change(const Tensor&, const Tensor& direction) const override;
  double logits(const Tensor& unknowns) const override { return change({}, unknowns); }
  bool has_hessian() const override {
    return data_.form == "signed" || (data_.form == "normalized" && data_.kind != "sinh");
  }
  double epsilon() const override;
  double elements() const override {
    return grams_.logits / static_cast<double>(std::max<int64_t>(data_.A2.size(1), 1)) *
           static_cast<double>(data_.B.size(-1));
  }
  const Grams& grams() const { return grams_; }
  // The best Y [d3, dv] for these unknowns, or theirs.
  Tensor output_weights(const Tensor& unknowns) const;

 private:
  friend class AttentionPlace;
  AttentionData data_;
  Grams grams_;
  Penalty penalty_;
};

}  // namespace torch_rescaled::solvers
