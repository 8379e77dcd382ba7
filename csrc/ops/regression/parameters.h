// SPDX-License-Identifier: BSD-3-Clause
// A regression's tensors as its kernels' parameters.
#pragma once
#include "../../kernels/regression/parameters.h"
#include "../batch.h"
#include "problem.h"

namespace rescaled::ops {

// All leading dimensions, each a tensor's size or 1, in their order.
class Problems : public Batch {
 public:
  explicit Problems(const RegressionPoint& x) : Batch(concrete(leading_sizes(x))) {
    for (size_t d = 0; d < full_.size(); ++d)
      if (full_[d] != 1) order_.push_back(static_cast<int64_t>(d));
  }
  RegressionParameters parameters() const {
    RegressionParameters p;
    set_sizes(p);
    p.batches = count();
    return p;
  }
};

inline void set(RegressionParameters& p, c10::string_view kind, c10::string_view form) {
  p.kind = kind == "exp" ? Kind::exp : kind == "cosh" ? Kind::cosh : Kind::sinh;
  p.form = form == "rescaled" ? Form::rescaled : form == "normalized" ? Form::normalized : Form::plain;
}
inline void set(RegressionParameters& p, const Problems& problems, const RegressionPoint& x) {
  if (x.A.defined()) p.A = problems.input(x.A, 2), p.rows = x.A.size(-2), p.columns = x.A.size(-1);
  if (x.b.defined()) p.rows = x.b.size(-1);
  p.b = problems.input(x.b, 1), p.x = problems.input(x.x, 1);
  p.row_weight = problems.input(x.row_weight, 1), p.penalty_weight = problems.input(x.penalty_weight, 1);
}
inline Curvature curvature_of(c10::string_view name) {
  return name == "full" ? Curvature::full : name == "clipped" ? Curvature::clipped : Curvature::gauss_newton;
}
// Numbers that are always float64.
inline at::TensorOptions wide(const Tensor& like) { return like.options().dtype(at::kDouble); }

}  // namespace rescaled::ops
