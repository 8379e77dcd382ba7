// SPDX-License-Identifier: BSD-3-Clause
// The rows of a regression as its solver sees them: what is known of all of them together, of those that other
// processes of a group have too. Vectors of n numbers belong to the rows here; numbers, gradients and Hessians to the
// whole problem, and are the same bits on all processes. Each of them costs one collective.
#pragma once
#include <ATen/TensorOperators.h>

#include <algorithm>
#include <array>
#include <functional>

#include "direction.h"
#include "group.h"
#include "regression.h"

namespace torch_rescaled::solvers {

template <size_t kCount>
std::array<double, kCount> numbers(const Tensor& t) {
  const Tensor host = wide(t);
  std::array<double, kCount> out{};
  std::copy_n(host.const_data_ptr<double>(), kCount, out.begin());
  return out;
}
using Point = std::array<double, rescaled::RegressionStatistics::count>;
using ModelNumbers = std::array<double, rescaled::RegressionModel::count>;

// On the CPU, contiguous.
RegressionCurvature hosted(const RegressionCurvature&);

class RegressionData {
 public:
  RegressionData(const RegressionPoint& problem, const Group& group);
  const RegressionPoint& problem() const { return problem_; }
  int64_t columns() const { return problem_.design().columns().expect_int(); }
  int64_t rows() const { return rows_; }  // of all processes
  const Group& group() const { return group_; }
  // A sum over the rows here to that over all, float64 on the CPU.
  Tensor sum(const Tensor& here) const { return wide(group_.single() ? here : group_.sum(here.to(at::kDouble))); }
  // The first process's, for all.
  Tensor first(const Tensor& here) const { return group_.single() ? here : group_.gathered(here)[0]; }
  // The method for all, by the largest ratio; NaN: not measured.
  SolveMethod agreed(SolveMethod here, double& gram_ratio) const;
  at::TensorOptions options() const { return problem_.b.options(); }

  // One read of A each.
  Tensor matvec(const Tensor& v) const;
  struct Evaluation {
    Point point;
    Tensor gradient;  // float64, in the units of the point
    Tensor x;         // as agreed on: each process's linear algebra rounds x in its own way
  };
  Evaluation evaluate(const Tensor& x, const RegressionSettings&) const;
  // A^T of each of the vectors [K, n], of A's elements squared if so asked: float64 on the CPU [K, d].
  Tensor transposed(const Tensor& vectors, bool squared) const;
  // |metric^T (a_i - center)|^2 of every row [n], float64; center [d], metric [d, m] (undefined: none) on the CPU.
  Tensor row_sizes(const Tensor& center, const Tensor& metric) const;
  // Hessian times v [d], in the units of `point`, float64 on the CPU both.
  Tensor product(const Tensor& x, const Tensor& v, const Point& point, const RegressionSettings&,
                 c10::string_view curvature) const;
  // A times each column of `vectors` [d, K]: [K, n]; a dense A is read once.
  Tensor products(const Tensor& vectors) const;
  // Rows of A, as a problem's A.
  RegressionPoint gathered(const Tensor& index) const;
  // A Gram too: gradient, Hessian and noise of the vectors `rows` (RegressionRows), float64 on the CPU. `square`: of
  // RegressionStatistics.
  RegressionCurvature curvature(const Tensor& rows, double square, c10::string_view curvature) const;
  // The same where the rows are, for RegressionStatistics there; of a group, on the CPU.
  RegressionCurvature curvature_here(const Tensor& rows, const Tensor& statistics, c10::string_view curvature) const;
  // The same of A^T right, A^T diag(weight) A + square (A^T p)(A^T p)^T.
  RegressionCurvature weighted_gram(const Tensor& right, const Tensor& weight, const Tensor& p, double square) const;

  // No read. Numbers at logits + steps[k] direction, float64 on the CPU [K, count]; of the logits alone with K = 1.
  Tensor statistics(const Tensor& logits, const Tensor& direction, const Tensor& steps,
                    const RegressionSettings&) const;
  // Losses of steps along t from zero logits, comparable with each other; +inf where they are not numbers.
  Tensor losses_along(const Tensor& t, const Tensor& steps, const RegressionSettings&) const;
  Point point(const Tensor& logits, const RegressionSettings&) const;
  Point point(const Tensor& logits, const Tensor& direction, double step, const RegressionSettings&) const;
  Tensor statistics_of(const Point&) const;  // where the rows are
  Tensor vectors(const Tensor& logits, const Tensor& statistics, const RegressionSettings&) const;  // RegressionRows
  // w_i v_i^2, with v as in docs/math.md (9); undefined in the plain form, where v = 0.
  Tensor squares(const Tensor& logits, const Point& point, const RegressionSettings&) const;
  // The second-order model along `direction` = A step, and the numbers where the whole step ends, at logits that
  // `logits_after` tells, which mostly is where the solver goes: with what else is wanted (float64 [.], of one process
  // alone) asked for together, so that a device is waited for once. All processes leave with the step of the first,
  // which is theirs but for rounding.
  struct Ahead {
    ModelNumbers model;
    Point whole;
    Tensor logits, statistics, others;  // where the whole step ends, where the rows are; `others` on the CPU
  };
  Ahead ahead(const Tensor& vectors, const Tensor& direction, Tensor& step,
              const std::function<Tensor(const Tensor& step)>& logits_after, const RegressionSettings&,
              const Tensor& others = {}) const;

 private:
  Tensor number_of(double x) const;  // [1], to send
  const RegressionPoint& problem_;
  const Group& group_;
  int64_t rows_;
};

}  // namespace torch_rescaled::solvers
