// SPDX-License-Identifier: BSD-3-Clause
#include "metric.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/matmul.h>

#include <cmath>
#include <limits>
#include <tuple>

namespace torch_rescaled::solvers {
namespace {

// V [d, r] with V^T gram V = 1 and V^T form V diagonal, and that diagonal. Directions below `cutoff` of the scaled
// Gram's eigenvalues move no logit, and are left out.
std::tuple<Tensor, Tensor> both_diagonal(const Tensor& form, const Tensor& gram, double cutoff) {
  const Tensor white = whitening(gram, cutoff);
  const auto [values, vectors] = at::linalg_eigh(at::matmul(white.mT(), at::matmul(form, white)));
  return {at::matmul(white, vectors), values.clamp_min(0)};
}

// A vector's slices as the blocks' matrices.
template <class Blocks, class Visit>
Tensor by_block(const Tensor& v, const Blocks& blocks, Visit visit) {
  std::vector<Tensor> parts;
  int64_t next = 0;
  for (const auto& block : blocks) {
    const int64_t rows = block.gram_left.size(0), columns = block.gram_right.size(0);
    parts.push_back(visit(block, v.slice(0, next, next + rows * columns).view({rows, columns})).flatten());
    next += rows * columns;
  }
  return parts.size() == 1 ? parts[0] : at::cat(parts);
}

}  // namespace

Metric::Metric(const std::vector<KroneckerBlock>& blocks, double epsilon) {
  const double floor = std::sqrt(epsilon), cutoff = epsilon < 1e-10 ? 1e-12 : 1e-9;
  for (const KroneckerBlock& block : blocks) {
    Factored f{block.gram_left, block.gram_right, {}, {}, {}, 1};
    const auto [left, a] = both_diagonal(block.left, block.gram_left, cutoff);
    const auto [right, b] = both_diagonal(block.right, block.gram_right, cutoff);
    f.left = left, f.right = right;
    f.values = a.unsqueeze(-1) * b.unsqueeze(0) + block.penalty;
    if (f.values.numel() > 0) f.typical = f.values.mean().item<double>();
    if (!(f.typical > std::numeric_limits<double>::min())) f.typical = 1;
    f.values = f.values.clamp_min(floor * f.typical);
    blocks_.push_back(f);
  }
}

Tensor Metric::weigh(const Tensor& v) const {
  return by_block(v, blocks_, [](const Factored& f, const Tensor& part) {
    return f.typical * at::matmul(f.gram_left, at::matmul(part, f.gram_right));
  });
}

Tensor Metric::solve(const Tensor& v, double damping) const {
  return by_block(v, blocks_, [&](const Factored& f, const Tensor& part) {
    const Tensor inside = at::matmul(f.left.mT(), at::matmul(part, f.right)) / (f.values + damping * f.typical);
    return at::matmul(f.left, at::matmul(inside, f.right.mT()));
  });
}

}  // namespace torch_rescaled::solvers
