// SPDX-License-Identifier: BSD-3-Clause
// Rows drawn at random. A draw is a function of its seed alone: no generator's state is kept anywhere.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <string>

namespace torch_rescaled::solvers {

using at::Tensor;

// How a solve samples rows. `by`: "weight", their curvature's diagonal D_i; "row_norm", D_i |a_i|^2; "leverage",
// D_i a_i^T H^-1 a_i, roughly; "uniform". "auto": by weight, and by leverage once that has not been enough.
struct Sampling {
  std::string by = "auto";
  int64_t rows = 0;  // 0: by the problem's size
  int64_t seed = 0;
  // A sample of 40 d rows is within about 2 / sqrt(40) of the Hessian; up to 160 d where that is still a sixteenth of
  // the rows or less, for which L-BFGS takes 7 steps in the place of 10.
  int64_t rows_of(int64_t all, int64_t columns) const {
    return rows > 0 ? rows : std::max(40 * columns, std::min(160 * columns, all / 16));
  }
  bool measures() const { return by == "leverage" || by == "row_norm"; }  // the rows' sizes, by a read of A
};

struct Sample {
  Tensor index, weight;  // [m] rows in ascending order, and 1 / (expected number of times each is drawn), times drawn
  explicit operator bool() const { return index.defined(); }
};

// The seed of a solve's draw number `count`.
uint64_t seed_of(int64_t seed, int64_t count);

// `count` rows with replacement, one in each of as many equal parts of the sum of `chances` [n] >= 0 (float64): sum of
// weight f(row) has the sum of f as its mean, and where chances go with f no deviation from it. Undefined where the
// chances have no finite positive sum.
Sample draw_rows(const Tensor& chances, int64_t count, uint64_t seed);

// Normal deviates, float64 on the CPU.
Tensor normal_deviates(int64_t rows, int64_t columns, uint64_t seed);

}  // namespace torch_rescaled::solvers
