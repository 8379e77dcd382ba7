// SPDX-License-Identifier: BSD-3-Clause
#include "quasi_newton.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/dot.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>

namespace torch_rescaled::solvers {

void Memory::begin(const Tensor& new_hessian, const Tensor& new_noise, double new_log_scale) {
  hessian = new_hessian, noise = new_noise, log_scale = new_log_scale;
  steps = at::zeros({kPairs, noise.size(0)}, noise.options());
  changes = at::zeros_like(steps), scale = at::zeros({kPairs}, noise.options());
  count = 0;
}

// Two loops over the pairs, newest to oldest and back, around the fixed Hessian's direction.
Direction Memory::direction(const Tensor& gradient, double damping) const {
  Tensor q = gradient;
  const double* const product = scale.const_data_ptr<double>();
  std::array<double, kPairs> weights{};
  const int64_t oldest = std::max<int64_t>(count - kPairs, 0);
  for (int64_t i = count - 1; i >= oldest; --i) {
    const int64_t at = i % kPairs;
    weights[static_cast<size_t>(at)] = at::dot(steps[at], q).item<double>() / product[at];
    q = q - weights[static_cast<size_t>(at)] * changes[at];
  }
  Direction found = newton_direction(hessian, q, damping);
  if (!found.step.defined()) return found;
  for (int64_t i = oldest; i < count; ++i) {
    const int64_t at = i % kPairs;
    const double back = at::dot(changes[at], found.step).item<double>() / product[at];
    found.step = found.step - (weights[static_cast<size_t>(at)] + back) * steps[at];
  }
  return found;
}

void Memory::add(const Tensor& step, const Tensor& change) {
  const double product = at::dot(step, change).item<double>();
  if (!(product > 1e-12 * (step.norm() * change.norm()).item<double>())) return;
  const int64_t at = count % kPairs;
  steps[at].copy_(step), changes[at].copy_(change), scale[at].fill_(product);
  count += 1;
}

Tensor Memory::pack() const {
  const Tensor numbers = at::tensor({log_scale, static_cast<double>(count)}, hessian.options());
  return at::cat({numbers, hessian.flatten(), noise, steps.flatten(), changes.flatten(), scale});
}

Memory Memory::unpack(const Tensor& packed, int64_t columns) {
  Memory m;
  int64_t next = 2;
  const auto part = [&](at::IntArrayRef sizes) {
    const int64_t size = c10::multiply_integers(sizes);
    next += size;
    return packed.slice(0, next - size, next).clone().view(sizes);
  };
  m.log_scale = packed[0].item<double>(), m.count = packed[1].item<int64_t>();
  m.hessian = part({columns, columns}), m.noise = part({columns});
  m.steps = part({kPairs, columns}), m.changes = part({kPairs, columns}), m.scale = part({kPairs});
  return m;
}

}  // namespace torch_rescaled::solvers
