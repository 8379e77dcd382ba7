// SPDX-License-Identifier: BSD-3-Clause
// Rows drawn at random. A draw is a function of its seed alone: no generator's state is kept anywhere.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace torch_rescaled::solvers {

using at::Tensor;

// How a solve samples rows.
struct Sampling {
  std::string by = "auto";  // "leverage", "row_norm" or "uniform"; "auto": kDefault
  int64_t rows = 0;         // 0: kRowsPerColumn of the columns
  int64_t seed = 0;
  static constexpr const char* kDefault = "leverage";
  static constexpr int64_t kRowsPerColumn = 40;
  int64_t rows_of(int64_t columns) const { return rows > 0 ? rows : kRowsPerColumn * columns; }
  bool is(const char* name) const { return by == name || (by == "auto" && std::string(name) == kDefault); }
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
