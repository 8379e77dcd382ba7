// SPDX-License-Identifier: BSD-3-Clause
#include "sampling.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/unique_consecutive.h>

#include <cmath>

namespace torch_rescaled::solvers {

uint64_t seed_of(int64_t seed, int64_t count) {  // splitmix64
  uint64_t z = static_cast<uint64_t>(seed) * 0x9E3779B97F4A7C15ull + static_cast<uint64_t>(count) + 1;
  for (const uint64_t factor : {0xBF58476D1CE4E5B9ull, 0x94D049BB133111EBull}) z = (z ^ (z >> 30)) * factor;
  return z ^ (z >> 31);
}

Sample draw_rows(const Tensor& chances, int64_t count, uint64_t seed) {
  const Tensor ends = chances.cumsum(0);
  const double total = ends.numel() > 0 ? ends[-1].item<double>() : 0;
  if (!(total > 0) || !std::isfinite(total)) return {};
  const auto doubles = at::TensorOptions().dtype(at::kDouble);
  const Tensor places =
      (at::arange(count, doubles) + at::rand({count}, at::detail::createCPUGenerator(seed), doubles)) *
      (total / static_cast<double>(count));
  // Below the last end, so that the row found has a chance.
  const Tensor within = places.clamp_max(std::nextafter(total, 0.)).to(chances.device());
  const auto [index, inverse, times] =
      at::unique_consecutive(at::searchsorted(ends, within, /*out_int32=*/false, /*right=*/true),
                             /*return_inverse=*/false, /*return_counts=*/true);
  return {index, times.to(at::kDouble) * (total / static_cast<double>(count)) / chances.index_select(0, index)};
}

Tensor normal_deviates(int64_t rows, int64_t columns, uint64_t seed) {
  return at::randn({rows, columns}, at::detail::createCPUGenerator(seed), at::TensorOptions().dtype(at::kDouble));
}

}  // namespace torch_rescaled::solvers
