// SPDX-License-Identifier: BSD-3-Clause
#include "conjugate_gradients.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>

#include <limits>

namespace torch_rescaled::solvers {

using at::Tensor;

Tensor conjugate_gradients(const std::function<Tensor(const Tensor&)>& product,
                           const std::function<Tensor(const Tensor&)>& precondition, const Tensor& v,
                           const CgSettings& settings) {
  const auto dot = [](const Tensor& a, const Tensor& b) { return (a * b).sum(-1, /*keepdim=*/true); };
  Tensor rest = v, y = at::zeros_like(v), z = precondition(rest), direction = z, size = dot(rest, z);
  const auto below = [first = size](double part) { return part * part * first; };
  Tensor done = (size <= below(settings.tolerance)).logical_or(size.isfinite().logical_not());
  for (int64_t i = 0; i < settings.most_products && !done.all().item<bool>(); ++i) {
    const Tensor image = product(direction), curved = dot(direction, image);
    done = done.logical_or((curved > 0).logical_not());
    const Tensor along = at::where(done, 0, size / curved);
    y = y + along * direction, rest = at::where(done, rest, rest - along * image);
    z = precondition(rest);
    const Tensor next = dot(rest, z);
    direction = at::where(done, direction, z + next / size * direction);
    size = at::where(done, size, next);
    done = done.logical_or(size <= below(settings.tolerance));
  }
  return at::where(size <= below(settings.acceptable), y, std::numeric_limits<double>::quiet_NaN());
}

}  // namespace torch_rescaled::solvers
