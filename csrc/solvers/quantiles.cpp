// SPDX-License-Identifier: BSD-3-Clause
#include "quantiles.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "direction.h"

namespace torch_rescaled::solvers {
namespace {

constexpr int64_t kTable = 4096;

}  // namespace

Quantiles::Quantiles(const Tensor& here, const Group& group) {
  const int64_t n = here.numel(), kept = std::min(n, kTable);
  const Tensor sorted = std::get<0>(here.to(at::kDouble).sort());
  // How many there are, the largest, and those in the middle of as many equal parts.
  Tensor table = at::zeros({kTable + 2}, sorted.options());
  table[0].fill_(n);
  if (n > 0) {
    table[1].copy_(sorted[n - 1]);
    const Tensor parts = at::arange(kept, sorted.options().dtype(at::kLong));
    const Tensor middle = ((2 * parts + 1) * n).div(2 * kept, "floor");
    table.slice(0, 2, 2 + kept).copy_(sorted.index_select(0, middle));
  }
  std::vector<Tensor> values, weights;
  bool first = true;
  for (const Tensor& one : wide(group.gathered(table)).unbind()) {
    const double count = one[0].item<double>();
    if (count == 0) continue;
    const auto size = static_cast<int64_t>(std::min<double>(count, kTable));
    values.push_back(one.slice(0, 2, 2 + size));
    weights.push_back(at::zeros({size}, at::kDouble) + count / static_cast<double>(size));
    const double most = one[1].item<double>();
    largest_ = first ? most : std::max(largest_, most);
    first = false;
  }
  const Tensor none = at::zeros({1}, at::kDouble);
  if (values.empty()) {
    values_ = none.slice(0, 0, 0), below_ = none;
    return;
  }
  const auto [in_order, places] = at::cat(values).sort(std::optional<bool>(true), 0, false);
  values_ = in_order, below_ = at::cat({none, at::cat(weights).index_select(0, places).cumsum(0)});
}

Tensor Quantiles::ranks(const Tensor& numbers) const {
  const Tensor of = numbers.to(at::kDouble).contiguous(), values = values_.to(of.device()),
               below = below_.to(of.device());
  const Tensor left = at::searchsorted(values, of), right = at::searchsorted(values, of, /*out_int32=*/false,
                                                                             /*right=*/true);
  return (below.index_select(0, left) + below.index_select(0, right) - 1) / 2;
}

double Quantiles::median() const {
  const int64_t size = values_.size(0);
  if (size == 0) return 0;
  const double half = std::floor((below_[size].item<double>() - 1) / 2) + .5;
  const int64_t at = at::searchsorted(below_, half).item<int64_t>() - 1;
  return values_[std::clamp<int64_t>(at, 0, size - 1)].item<double>();
}

}  // namespace torch_rescaled::solvers
