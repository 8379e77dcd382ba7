// SPDX-License-Identifier: BSD-3-Clause
// Order statistics of numbers that the processes of a group share out: for a start, which need not know them exactly.
#pragma once
#include "group.h"

namespace torch_rescaled::solvers {

// A table of each process's quantiles, merged: exact where none has more numbers than its table. The numbers are
// finite, and any process may have none.
class Quantiles {
 public:
  Quantiles(const Tensor& here, const Group& group);
  Tensor ranks(const Tensor& numbers) const;  // how many are smaller, half of the equal ones among them
  double median() const;                      // the lower one; 0 of none
  double largest() const { return largest_; }

 private:
  Tensor values_, below_;  // sorted; how many numbers come before each, and at the end how many there are
  double largest_ = 0;
};

}  // namespace torch_rescaled::solvers
