// SPDX-License-Identifier: BSD-3-Clause
#include "quasi_newton.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

namespace torch_rescaled::solvers {
namespace {

// The next part of a packed tensor.
class Reader {
 public:
  explicit Reader(const Tensor& packed) : packed_(packed) {}
  double number() { return packed_[next_++].item<double>(); }
  Tensor part(at::IntArrayRef sizes) {
    const int64_t size = c10::multiply_integers(sizes);
    next_ += size;
    return packed_.slice(0, next_ - size, next_).clone().view(sizes);
  }
  Tensor rest() const { return packed_.slice(0, next_); }

 private:
  const Tensor packed_;
  int64_t next_ = 0;
};

Tensor number(double x, const Tensor& like) { return at::tensor({x}, like.options()); }

}  // namespace

void Pairs::begin(int64_t kept, int64_t columns) {
  steps = at::zeros({kept, columns}, at::kDouble);
  changes = at::zeros_like(steps), scale = at::zeros({kept}, at::kDouble);
  count = 0;
}

void Pairs::add(const Tensor& step, const Tensor& change) {
  const double product = at::dot(step, change).item<double>();
  if (!(product > 1e-12 * (step.norm() * change.norm()).item<double>())) return;
  const int64_t at = count % scale.size(0);
  steps[at].copy_(step), changes[at].copy_(change), scale[at].fill_(product);
  count += 1;
}

Tensor Pairs::pack() const {
  return at::cat({number(static_cast<double>(count), scale), steps.flatten(), changes.flatten(), scale});
}

Pairs Pairs::unpack(const Tensor& packed, int64_t kept, int64_t columns) {
  Pairs p;
  Reader reader(packed);
  p.count = static_cast<int64_t>(reader.number());
  p.steps = reader.part({kept, columns}), p.changes = reader.part({kept, columns}), p.scale = reader.part({kept});
  return p;
}

void Memory::begin(const Tensor& new_hessian, const Tensor& new_noise, double new_log_scale) {
  hessian = new_hessian, noise = new_noise, log_scale = new_log_scale;
  pairs.begin(kPairs, noise.size(0));
}

Direction Memory::direction(const Tensor& gradient, double damping) const {
  Direction found;
  found.step = pairs.direction(gradient, [&](const Tensor& q) {
    found = newton_direction(hessian, q, damping);
    return found.step;
  });
  return found;
}

Tensor Memory::pack() const { return at::cat({number(log_scale, noise), hessian.flatten(), noise, pairs.pack()}); }

Memory Memory::unpack(const Tensor& packed, int64_t columns) {
  Memory m;
  Reader reader(packed);
  m.log_scale = reader.number();
  m.hessian = reader.part({columns, columns}), m.noise = reader.part({columns});
  m.pairs = Pairs::unpack(reader.rest(), kPairs, columns);
  return m;
}

}  // namespace torch_rescaled::solvers
