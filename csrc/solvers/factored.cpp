// SPDX-License-Identifier: BSD-3-Clause
#include "factored.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/linalg_eigh.h>
#include <ATen/ops/linalg_svd.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>
#include <tuple>

namespace torch_rescaled::solvers {

class FactoredPlace : public Place {
 public:
  FactoredPlace(const FactoredObjective& of, const Tensor& unknowns)
      : of_(of), unknowns_(unknowns), whole_(of.whole_.at(of.product(unknowns))) {
    loss = whole_->loss, log_scale = whole_->log_scale, magnitude = whole_->magnitude;
    log_sum = whole_->log_sum, spread = whole_->spread;
  }
  Tensor gradient() override { return pulled(whole_->gradient(), unknowns_); }
  void curve(bool full) override {
    whole_->curve(full);
    full_ = full;
  }
  Tensor product(const Tensor& v) override {
    const Tensor out = pulled(whole_->product(of_.tangent(unknowns_, v)), unknowns_);
    if (!full_) return out;
    const Tensor turned = pulled(whole_->gradient(), v);
    return out + at::cat({turned.slice(0, 0, turned.size(0) - of_.rest(v).size(0)), at::zeros_like(of_.rest(v))});
  }
  std::vector<KroneckerBlock> blocks() override { return pulled(whole_->blocks()); }
  std::vector<KroneckerBlock> rough_blocks() override { return pulled(whole_->rough_blocks()); }

 private:
  std::vector<KroneckerBlock> pulled(std::vector<KroneckerBlock> out) const {
    const KroneckerBlock whole = out[0];
    const Tensor P = of_.left(unknowns_), Q = of_.right(unknowns_);
    const auto seen = [](const Tensor& form, const Tensor& by) { return at::matmul(by.mT(), at::matmul(form, by)); };
    out[0] = {whole.left, seen(whole.right, Q), whole.gram_left, seen(whole.gram_right, Q), whole.penalty};
    out.insert(out.begin() + 1,
               {whole.right, seen(whole.left, P), whole.gram_right, seen(whole.gram_left, P), whole.penalty});
    return out;
  }
  Tensor map(const Tensor& v) const { return v.slice(0, 0, of_.rows_ * of_.columns_).view({of_.rows_, of_.columns_}); }
  // The transpose of the factors' product's tangent at `factors`.
  Tensor pulled(const Tensor& v, const Tensor& factors) const {
    const Tensor G = map(v);
    return at::cat({at::matmul(G, of_.right(factors)).flatten(), at::matmul(G.mT(), of_.left(factors)).flatten(),
                    v.slice(0, of_.rows_ * of_.columns_)});
  }
  const FactoredObjective& of_;
  const Tensor unknowns_;
  const std::unique_ptr<Place> whole_;
  bool full_ = false;
};

std::unique_ptr<Place> FactoredObjective::at(const Tensor& unknowns) const {
  return std::make_unique<FactoredPlace>(*this, unknowns);
}
double FactoredObjective::change(const Tensor& unknowns, const Tensor& direction) const {
  return whole_.change(product(unknowns), tangent(unknowns, direction));
}
Tensor FactoredObjective::product(const Tensor& v) const {
  return at::cat({at::matmul(left(v), right(v).mT()).flatten(), rest(v)});
}
Tensor FactoredObjective::tangent(const Tensor& v, const Tensor& d) const {
  const Tensor map = at::matmul(left(d), right(v).mT()) + at::matmul(left(v), right(d).mT());
  return at::cat({map.flatten(), rest(d)});
}

Tensor FactoredObjective::factors(const Tensor& X, const Tensor& gram_left, const Tensor& gram_right, int64_t rank,
                                  double least) {
  // X = L^-T (L^T X R) R^-1 with Grams L L^T, R R^T, roots by eigenvectors: singular Grams have no Cholesky factor.
  const auto root = [](const Tensor& gram) {
    const auto [values, vectors] = at::linalg_eigh(gram);
    const Tensor kept = values.clamp_min(1e-12 * values.abs().max().item<double>() + 1e-300).sqrt();
    return std::tuple<Tensor, Tensor>{vectors * kept, vectors / kept};
  };
  const auto [left, left_inverse] = root(gram_left);
  const auto [right, right_inverse] = root(gram_right);
  const auto [U, S, Vh] = at::linalg_svd(at::matmul(left.mT(), at::matmul(X, right)), /*full_matrices=*/false);
  // A column of zeros in both factors would stay so: X = 0 is a saddle.
  const Tensor half = S.slice(0, 0, rank).clamp_min(std::max(1e-3 * S.max().item<double>(), least)).sqrt();
  const Tensor P = at::matmul(left_inverse, U.slice(1, 0, rank) * half),
               Q = at::matmul(right_inverse, Vh.slice(0, 0, rank).mT() * half);
  return at::cat({P.flatten(), Q.flatten()});
}

}  // namespace torch_rescaled::solvers
