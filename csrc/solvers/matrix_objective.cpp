// SPDX-License-Identifier: BSD-3-Clause
#include "matrix_objective.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/einsum.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../ops/matrix_regression/plain.h"
#include "../ops/matrix_regression/primitives.h"

namespace torch_rescaled::solvers {

using namespace rescaled::ops;

namespace {

constexpr int64_t kBlock = 1 << 18;    // elements of the map that the curvature's blocks form at a time
constexpr int64_t kSampled = 1 << 17;  // and that the metric rests on, at least

// Samples and rows as one dimension.
Tensor flat(const Tensor& t) { return t.flatten(0, -2); }
Tensor wide_gram(const Tensor& A) {
  Tensor sum = at::zeros({A.size(-1), A.size(-1)}, A.options().dtype(at::kDouble));
  const Tensor rows = flat(A);
  const int64_t step = std::max<int64_t>(kBlock / std::max<int64_t>(A.size(-1), 1), 1);
  for (int64_t i = 0; i < rows.size(0); i += step) {
    const Tensor part = rows.slice(0, i, i + step).to(at::kDouble);
    sum += at::matmul(part.mT(), part);
  }
  return sum;
}

}  // namespace

Grams::Grams(const Tensor& A1, const Tensor& A2, const Group& group) {
  // A2 and the columns are every process's own; the rows of A1 are shared out.
  left = wide(group.sum(wide_gram(A1)));
  right = wide(wide_gram(A2));
  const double samples = static_cast<double>(std::max<int64_t>(A2.size(0), 1));
  right = right / samples;
  const double rows = static_cast<double>(A1.size(0)) * static_cast<double>(A1.size(1));
  logits = wide(group.sum(at::tensor({rows}, A1.options().dtype(at::kDouble)))).item<double>() *
           static_cast<double>(A2.size(1));
  logits = std::max(logits, 1.);
}
double Grams::mean_square(const Tensor& V) const {
  return std::max((V * at::matmul(left, at::matmul(V, right))).sum().item<double>(), 0.) / logits;
}

Penalty::Penalty(const Tensor& A1, const Tensor& A2, double weight, const Group& group)
    : weight_(weight), group_(group) {
  if (there()) left_ = at::matmul(A1.mT(), A1), right_ = at::matmul(A2.mT(), A2);
}
double Penalty::weight(double log_scale) const { return weight_ * std::exp(-log_scale); }
Tensor Penalty::product(const Tensor& V) const {
  return wide(group_.sum(at::matmul(at::matmul(left_, V.to(left_.options())), right_).sum(0)));
}
Tensor Penalty::matrix() const {
  const int64_t d1 = left_.size(-1), d2 = right_.size(-1);
  const Tensor right = wide(right_).expand({left_.size(0), d2, d2});
  const Tensor sum = at::einsum("sij,skl->ikjl", {wide(left_), right}).reshape({d1 * d2, d1 * d2});
  return wide(group_.sum(sum.to(left_.device())));
}

class MatrixPlace : public Place {
 public:
  MatrixPlace(const MatrixObjective& of, const Tensor& unknowns) : of_(of), X_(shaped(unknowns)) {
    point_ = data().point;
    point_.query = at::matmul(data().A1, X_.to(data().A1.options()));
    statistics_ = matrix_statistics(point_, of.settings_);
    const MatrixNumbers numbers = matrix_numbers(statistics_.to(at::kDouble));
    const Tensor &losses = numbers.loss, &reference = numbers.reference, &square = numbers.square, &beta = numbers.beta,
                 sum = numbers.sum.abs();
    const bool scaled = of.settings_.form != "normalized";
    Tensor weight = at::ones_like(losses);
    if (scaled) {
      const double none = -std::numeric_limits<double>::infinity();
      Tensor most = reference.masked_fill(losses == 0, none);
      most = data().group.largest(most.numel() == 0 ? at::zeros({}, reference.options()) : most.max());
      double largest = wide(most).item<double>();
      if (!(largest > none) || (penalty().there() && largest < 0)) largest = 0;
      log_scale = 2 * std::log(2.) * largest;
      weight = (2 * (reference - largest).clamp_max(0)).exp2();
    }
    row_weight_ = weight.unsqueeze(-1).to(statistics_.scalar_type());
    Tensor magnitude = 2 * losses;
    if (of.settings_.form == "rescaled") magnitude = magnitude + 2 * sum * (beta.abs() + sum * square);
    if (of.settings_.form == "plain") magnitude = magnitude + sum.square() / static_cast<double>(point_.key.size(-2));
    if (of.settings_.form == "normalized") magnitude = magnitude + 2 * square;
    const Tensor along = square - beta, both = square * (2 * losses - square + 2 * along);  // <f, b>, |f|^2 |b|^2
    const Tensor totals = wide(data().group.sum(
        at::stack({(losses * weight).sum(), (magnitude * weight).sum(), (sum.log() + std::log(2.) * reference).sum(),
                   at::ones_like(sum).sum(), at::where(both > 0, 1 - along.square() / both, 0.).sum()})));
    const double* const total = totals.const_data_ptr<double>();
    loss = total[0], this->magnitude = total[1];
    log_sum = total[2] / std::max(total[3], 1.);
    if (!scaled) misfit = total[4] / std::max(total[3], 1.);
    if (of.settings_.kind == "sinh" && sum.numel() > 0)
      spread = 1 / std::max(wide(data().group.largest(-sum.min())).item<double>() * -1, 1e-300);
    if (penalty().there()) loss += penalty().weight(log_scale) * penalty().loss(X_);
  }

  Tensor gradient() override {
    if (gradient_.defined()) return gradient_;
    Tensor g = gathered(matrix_gradient(point_, statistics_, of_.settings_));
    if (penalty().there()) g = g + penalty().weight(log_scale) * penalty().product(X_);
    return gradient_ = g.flatten();
  }

  void curve(bool full) override {
    full_ = full;
    moments_ = matrix_moments(point_, statistics_, of_.settings_, full);
  }

  Tensor product(const Tensor& v) override {
    const Tensor V = shaped(v), direction = at::matmul(data().A1, V.to(data().A1.options()));
    Tensor out = gathered(matrix_product(point_, statistics_, moments_, direction, of_.settings_, full_));
    if (penalty().there()) out = out + penalty().weight(log_scale) * penalty().product(V);
    return out.flatten();
  }

  // As K-FAC: sum_i a_i a_i^T kron C_i by sum_i tr(C_i) a_i a_i^T kron sum_i C_i / sum_i tr(C_i), of some rows.
  std::vector<KroneckerBlock> blocks() override {
    Tensor left = at::zeros({of_.rows_, of_.rows_}, at::kDouble),
           right = at::zeros({of_.columns_, of_.columns_}, at::kDouble);
    const int64_t samples = data().A1.size(0), rows = data().A1.size(1),
                  keys = std::max<int64_t>(point_.key.size(-2), 1);
    const int64_t most = std::max({kSampled / keys, 4 * of_.rows_, 4 * of_.columns_}) / std::max<int64_t>(samples, 1);
    for_rows(std::max<int64_t>(rows / std::max<int64_t>(most, 1), 1), [&](const RowCurvature& c, const Tensor& A1,
                                                                          const Tensor& A2) {
      const Tensor squares = A2.square().sum(-1).unsqueeze(-2);
      const Tensor traces = ((c.diagonal * squares).sum(-1) - 2 * (c.p * c.q).sum(-1) + (c.square * c.p * c.p).sum(-1));
      left += wide(at::einsum("sri,sr,srj->ij", {A1, traces.clamp_min(0), A1}));
      const Tensor column = c.diagonal.sum(-2).unsqueeze(-1);
      Tensor sum = at::matmul(A2.mT(), column * A2).sum(0);
      const Tensor p = flat(c.p), q = flat(c.q), sp = flat(c.square * c.p), cross = at::matmul(p.mT(), q);
      sum = sum - cross - cross.mT() + at::matmul(p.mT(), sp);
      right += wide(sum);
    });
    const Tensor sums = wide(data().group.sum(at::cat({left.flatten(), right.flatten()}).to(data().A1.device())));
    const int64_t split = of_.rows_ * of_.rows_;
    left = sums.slice(0, 0, split).view({of_.rows_, of_.rows_});
    right = sums.slice(0, split).view({of_.columns_, of_.columns_});
    const double trace = right.trace().item<double>();
    const double share = static_cast<double>(sampled_) / static_cast<double>(std::max<int64_t>(samples * rows, 1));
    if (trace > 0 && share > 0) right = right / (trace * share);
    return {{left, right, of_.grams_.left, of_.grams_.right, penalty().weight(log_scale)}};
  }

  // sum_i (a_i a_i^T) kron (A2^T Hz_i A2), in blocks of rows: one product of pairs of columns each.
  Tensor matrix() override {
    const int64_t d1 = of_.rows_, d2 = of_.columns_;
    Tensor sum = at::zeros({d1 * d1, d2 * d2}, data().A1.options().dtype(at::kDouble));
    const bool full = full_;
    for_rows(
        1,
        [&](const RowCurvature& c, const Tensor& A1, const Tensor& A2) {
          const auto pairs = [](const Tensor& a, const Tensor& b) {
            return (a.unsqueeze(-1) * b.unsqueeze(-2)).flatten(-2);
          };
          const Tensor cross = pairs(c.p, c.q), other = pairs(c.q, c.p), same = pairs(c.square * c.p, c.p);
          const Tensor blocks = at::matmul(c.diagonal, pairs(A2, A2)) - cross - other + same;  // [s, r, d2 d2]
          sum += at::matmul(flat(pairs(A1, A1)).mT(), flat(blocks)).to(at::kDouble);
        },
        full);
    Tensor out = wide(data().group.sum(sum)).view({d1, d1, d2, d2}).permute({0, 2, 1, 3}).reshape({d1 * d2, d1 * d2});
    if (penalty().there()) out = out + penalty().weight(log_scale) * penalty().matrix();
    return out;
  }

 private:
  struct RowCurvature {
    Tensor diagonal, p, q, square;  // [s, r, n2], [s, r, d2] twice, [s, r, 1]: in units of the loss
  };
  const MatrixData& data() const { return of_.data_; }
  Tensor shaped(const Tensor& v) const { return v.view({of_.rows_, of_.columns_}); }
  const Penalty& penalty() const { return of_.penalty_; }
  // A1^T rows, summed, of rows in the units of the statistics.
  Tensor gathered(const Tensor& rows) const {
    return wide(data().group.sum(at::matmul(flat(data().A1).mT(), flat(rows * row_weight_))));
  }

  // Every `stride`-th row, in blocks.
  template <class Visit>
  void for_rows(int64_t stride, Visit visit, bool full = false) {
    const int64_t samples = data().A1.size(0), rows = data().A1.size(1),
                  keys = std::max<int64_t>(point_.key.size(-2), 1);
    const int64_t step = std::max<int64_t>(kBlock / keys / std::max<int64_t>(samples, 1), 1);
    const Tensor every = at::arange(0, rows, stride, data().A1.options().dtype(at::kLong));
    sampled_ = samples * every.size(0);
    for (int64_t i = 0; i < every.size(0); i += step) {
      const Tensor index = every.slice(0, i, i + step), A1 = data().A1.index_select(1, index);
      const MatrixCurvature c = plain_matrix_curvature(point_, index, of_.settings_, full);
      const Tensor half = (c.shift - log_scale / 2).exp(), scale = half * half;
      visit(RowCurvature{scale * c.diagonal, half * at::matmul(c.p, point_.key), half * at::matmul(c.q, point_.key),
                         c.square},
            A1, point_.key);
    }
  }

  const MatrixObjective& of_;
  const Tensor X_;
  MatrixPoint point_;
  Tensor statistics_, row_weight_, gradient_;
  Two moments_;
  bool full_ = false;
  int64_t sampled_ = 0;
};

MatrixObjective::MatrixObjective(MatrixData data, MatrixSettings settings, Grams grams)
    : data_(std::move(data)),
      settings_(std::move(settings)),
      rows_(data_.A1.size(-1)),
      columns_(data_.point.key.size(-1)),
      grams_(std::move(grams)),
      penalty_(data_.A1, data_.point.key, data_.regularization, data_.group) {}

std::unique_ptr<Place> MatrixObjective::at(const Tensor& unknowns) const {
  return std::make_unique<MatrixPlace>(*this, unknowns);
}
double MatrixObjective::change(const Tensor&, const Tensor& direction) const {
  return std::sqrt(grams_.mean_square(direction.view({rows_, columns_})));
}
double MatrixObjective::epsilon() const {
  return data_.A1.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                               : std::numeric_limits<float>::epsilon();
}

}  // namespace torch_rescaled::solvers
