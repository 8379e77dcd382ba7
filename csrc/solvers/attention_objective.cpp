// SPDX-License-Identifier: BSD-3-Clause
#include "attention_objective.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "map_start.h"

namespace torch_rescaled::solvers {

using namespace rescaled::ops;

namespace {

constexpr int64_t kJacobian = 1 << 25;  // elements of the rows' Jacobians that are kept
constexpr int64_t kPairs = 1 << 22;     // elements of pairs of columns formed at a time
constexpr int64_t kWidest = 128;        // columns of the output for which Jacobians of all rows pay,
constexpr int64_t kLongest = 4;         // and keys, in columns of A2 or the output: few are passed over as fast
constexpr int kProbes = 2;              // of the rough metric: 4 saved no step, 1 took a tenth more
constexpr int64_t kSampled = 2048;      // rows that the metric rests on at least, where not all have one

Tensor flat(const Tensor& t) { return t.flatten(0, -2); }
Tensor column(const Tensor& t) { return t.unsqueeze(-1); }
Tensor row_dot(const Tensor& a, const Tensor& b) { return (a * b).sum(-1); }

}  // namespace

bool keeps_jacobians(int64_t rows, int64_t keys, int64_t columns, int64_t outputs) {
  return outputs <= kWidest && rows * outputs * columns <= kJacobian && keys >= kLongest * std::max(columns, outputs);
}

// The residual R = F Y - T of every row, from the core's output W, balance rho and log-normalizer l:
//   normalized  F = W / rho,        T = B
//   signed      F = W,              T = B
//   rescaled    F = e^(l - m) W,    T = e^(l - m) rho B, in units of e^2m
class AttentionPlace : public Place {
 public:
  AttentionPlace(const AttentionObjective& of, const Tensor& unknowns) : of_(of) {
    const AttentionData& x = of.data_;
    X_ = unknowns.slice(0, 0, of.map_size()).view({x.A1.size(-1), x.A2.size(-1)});
    point_ = {at::matmul(x.A1, X_.to(x.A1.options())), x.A2, x.A3, {}, x.mask, {}};
    settings_ = {0, x.is_causal, 1., x.kind};
    saved_ = attention_forward(point_, settings_);
    const Tensor has_keys = (saved_.log_normalizer > -std::numeric_limits<double>::infinity()).to(x.A1.scalar_type());
    Tensor target = x.B * column(has_keys);
    if (x.form == "rescaled") {
      const Tensor finite = at::where(has_keys != 0, saved_.log_normalizer, -std::numeric_limits<double>::infinity());
      const Tensor most = x.group.largest(finite.numel() == 0 ? at::zeros({}, finite.options()) : finite.max());
      const double m = std::max(wide(most).item<double>(), -1e300);
      log_scale = 2 * m;
      weight_ = (saved_.log_normalizer - m).exp() * has_keys;
      features_ = column(weight_) * saved_.output;
      target = column(weight_ * saved_.balance) * x.B;
    } else if (x.form == "normalized" && x.kind == "sinh") {
      inverse_ = at::where(has_keys != 0, 1 / saved_.balance, 0.);
      features_ = column(inverse_) * saved_.output;
    } else {
      features_ = saved_.output;
    }
    // In float64: the normal equations have the square of the features' condition.
    const Tensor F = flat(features_).to(at::kDouble), T = flat(target).to(at::kDouble);
    const Tensor sums = wide(x.group.sum(at::cat({at::matmul(F.mT(), F), at::matmul(F.mT(), T)}, -1)));
    const int64_t d3 = F.size(-1);
    gram_ = sums.slice(1, 0, d3).contiguous();
    white_ = whitening(gram_, of.epsilon() < 1e-10 ? 1e-13 : 1e-10);
    Y_ = x.joint ? unknowns.slice(0, of.map_size()).view({d3, x.B.size(-1)})
                 : at::matmul(white_, at::matmul(white_.mT(), sums.slice(1, d3)));
    const Tensor outputs = at::matmul(F, Y_.to(F.device()));
    residual_ = (outputs - T).view(target.sizes()).to(target.scalar_type());
    outputs_ = outputs.view(target.sizes()).to(target.scalar_type());
    const Tensor balance = saved_.balance.abs().to(at::kDouble), keys = has_keys.to(at::kDouble);
    const Tensor log_sums = at::where(keys != 0, balance.log() + saved_.log_normalizer, 0.);
    const Tensor totals = wide(x.group.sum(at::stack(
        {(outputs - T).square().sum() / 2, outputs.square().sum() + T.square().sum(), log_sums.sum(), keys.sum()})));
    const double* const total = totals.const_data_ptr<double>();
    loss = total[0], magnitude = total[1], log_sum = total[2] / std::max(total[3], 1.);
    if (inverse_.defined() && inverse_.numel() > 0) spread = wide(x.group.largest(inverse_.abs().max())).item<double>();
    if (penalty().there()) loss += penalty().weight(log_scale) * penalty().loss(X_);
  }

  const Tensor& output_weights() const { return Y_; }

  void curve(bool full) override {
    const AttentionData& x = of_.data_;
    full_ = full;
    if (jacobian_.defined()) return;
    const int64_t rows = x.A1.size(0) * x.A1.size(1), outputs = x.B.size(-1), d2 = x.A2.size(-1);
    all_rows_ = keeps_jacobians(rows, x.A2.size(1), d2, outputs);
    const int64_t wanted = std::max(kSampled, 4 * x.A1.size(-1));
    const int64_t some = std::max<int64_t>(std::min(wanted, kJacobian / std::max<int64_t>(outputs * d2, 1)), 1);
    stride_ = all_rows_ ? 1 : std::clamp<int64_t>(rows / some, 1, std::max<int64_t>(x.A1.size(1), 1));
    jacobian_ = jacobians(stride_);
  }

  Tensor gradient() override {
    if (gradient_.defined()) return gradient_;
    Tensor g = gathered(residual_);
    if (penalty().there()) g = g + penalty().weight(log_scale) * penalty().product(X_);
    gradient_ = with_outputs(g, residual_);
    return gradient_;
  }

  Tensor product(const Tensor& v) override {
    const AttentionData& x = of_.data_;
    const Tensor V = v.slice(0, 0, of_.map_size()).view(X_.sizes());
    const Tensor direction = at::matmul(x.A1, V.to(x.A1.options()));
    if (full_) return hessian_product(v, V, direction);
    Tensor moved = all_rows_ ? at::matmul(jacobian_, column(direction)).squeeze(-1) : tangent(direction);
    if (x.joint) {
      const Tensor dY = v.slice(0, of_.map_size()).view(Y_.sizes());
      moved = moved + at::matmul(features_, dY.to(features_.options()));
    } else {  // what the best Y does not take up
      const Tensor taken = wide(x.group.sum(at::matmul(flat(features_).mT(), flat(moved))));
      const Tensor along = at::matmul(white_, at::matmul(white_.mT(), taken));
      moved = moved - at::matmul(features_, along.to(features_.options()));
    }
    Tensor out = gathered(moved);
    if (penalty().there()) out = out + penalty().weight(log_scale) * penalty().product(V);
    return with_outputs(out, moved);
  }

  // sum_i a_i a_i^T kron J_i^T J_i as the matrix regression's.
  std::vector<KroneckerBlock> blocks() override {
    const AttentionData& x = of_.data_;
    curve(full_);
    const Tensor A1 = x.A1.slice(1, 0, x.A1.size(1), stride_), J = jacobian_.to(at::kDouble);
    const Tensor weights = J.square().sum({-1, -2}), a = flat(A1.to(at::kDouble));
    const Tensor left = at::matmul(a.mT(), weights.flatten().unsqueeze(-1) * a);
    return blocks_of(left, at::matmul(flat(J).mT(), flat(J)),
                     static_cast<double>(A1.size(1)) / static_cast<double>(std::max<int64_t>(x.A1.size(1), 1)));
  }

  // From J_i^T e for signs e, whose e e^T is the identity on average.
  std::vector<KroneckerBlock> rough_blocks() override {
    const Tensor a = flat(of_.data_.A1.to(at::kDouble));
    Tensor left, right;
    for (int i = 0; i < kProbes; ++i) {
      const Tensor signs = scattered(residual_.numel(), i * residual_.numel()).sign().view(residual_.sizes());
      const Tensor rows = flat(cotangent(signs.to(residual_.options()))).to(at::kDouble);
      const Tensor one = at::matmul(a.mT(), rows.square().sum(-1, /*keepdim=*/true) * a) / kProbes,
                   other = at::matmul(rows.mT(), rows) / kProbes;
      left = i == 0 ? one : left + one, right = i == 0 ? other : right + other;
    }
    return blocks_of(left, right, 1);
  }

 private:
  const Penalty& penalty() const { return of_.penalty_; }
  // From sums over a `share` of the rows.
  std::vector<KroneckerBlock> blocks_of(const Tensor& left, const Tensor& right, double share) const {
    const AttentionData& x = of_.data_;
    const Tensor sums = wide(x.group.sum(at::cat({left.flatten(), right.flatten()})));
    const int64_t d1 = X_.size(0), d2 = X_.size(1);
    Tensor by_key = sums.slice(0, d1 * d1).view({d2, d2});
    const double trace = by_key.trace().item<double>();
    if (trace > 0) by_key = by_key / (trace * share);
    std::vector<KroneckerBlock> out = {{sums.slice(0, 0, d1 * d1).view({d1, d1}), by_key, of_.grams_.left,
                                        of_.grams_.right, penalty().weight(log_scale)}};
    if (x.joint) {
      const Tensor one = at::eye(x.B.size(-1), at::kDouble);
      out.push_back({gram_, one, gram_, one, 0});
    }
    return out;
  }
  Tensor with_outputs(const Tensor& map, const Tensor& cotangent) const {
    if (!of_.data_.joint) return map.flatten();
    const Tensor by_output = wide(of_.data_.group.sum(at::matmul(flat(features_).mT(), flat(cotangent))));
    return at::cat({map.flatten(), by_output.flatten()});
  }

  // The residual's tangent for one of the query, by the core's.
  Tensor tangent(const Tensor& direction) const {
    const AttentionData& x = of_.data_;
    const Saved d = attention_jvp({direction, {}, {}, {}}, point_, saved_, settings_);
    if (x.form == "rescaled") {
      const Tensor features = column(weight_) * (d.output + column(d.log_normalizer) * saved_.output);
      const Tensor unit = weight_ * (d.balance + d.log_normalizer * saved_.balance);
      return at::matmul(features, Y()) - column(unit) * x.B;
    }
    if (inverse_.defined()) return at::matmul(column(inverse_) * (d.output - features_ * column(d.balance)), Y());
    return at::matmul(d.output, Y());
  }

  // Of the Hessian, where F = W. Beside Gauss-Newton's term it has what Y's change does to the cotangent R Y^T of W,
  // and the core's second derivative at that cotangent.
  Tensor hessian_product(const Tensor& v, const Tensor& V, const Tensor& direction) const {
    const AttentionData& x = of_.data_;
    const Tensor held = at::matmul(residual_, Y().mT());
    const auto second = attention_double_backward({direction, {}, {}, {}}, {held, {}, {}}, point_, saved_, settings_,
                                                  {true, false, false, true, false, false, false});
    const Tensor& turned = second[0];
    Tensor moved = at::matmul(turned, Y()), dY;
    const auto by_output = [&](const Tensor& R, const Tensor& dR) {
      return wide(x.group.sum(at::matmul(flat(turned).mT(), flat(R)) + at::matmul(flat(features_).mT(), flat(dR))));
    };
    if (x.joint)
      dY = v.slice(0, of_.map_size()).view(Y_.sizes());
    else
      dY = -at::matmul(white_, at::matmul(white_.mT(), by_output(residual_, moved)));
    const Tensor change = dY.to(features_.options());
    moved = moved + at::matmul(features_, change);
    const Tensor rows =
        second[3] + attention_backward({at::matmul(moved, Y().mT()) + at::matmul(residual_, change.mT()), {}, {}},
                                       point_, saved_, settings_, {true, false, false, false})[0];
    Tensor out = wide(x.group.sum(at::matmul(flat(x.A1).mT(), flat(rows))));
    if (penalty().there()) out = out + penalty().weight(log_scale) * penalty().product(V);
    return x.joint ? at::cat({out.flatten(), by_output(residual_, moved).flatten()}) : out.flatten();
  }

  // A1^T (d residual / d query)^T C, summed.
  Tensor gathered(const Tensor& C) const {
    const AttentionData& x = of_.data_;
    const Tensor rows = all_rows_ ? at::matmul(jacobian_.mT(), column(C)).squeeze(-1) : cotangent(C);
    return wide(x.group.sum(at::matmul(flat(x.A1).mT(), flat(rows))));
  }
  Tensor cotangent(const Tensor& C) const {
    const AttentionData& x = of_.data_;
    const Tensor features = at::matmul(C, Y().mT());
    Cotangents g{features, {}, {}};
    if (x.form == "rescaled") {
      const Tensor along = row_dot(C, x.B);
      g = {column(weight_) * features, -weight_ * along,
           weight_ * (row_dot(features, saved_.output) - saved_.balance * along)};
    } else if (inverse_.defined()) {
      g = {column(inverse_) * features, -inverse_ * row_dot(features, features_), {}};
    }
    return attention_backward(g, point_, saved_, settings_, {true, false, false, false})[0];
  }

  // d residual / d query of every `stride`-th row: [s, r, dv, d2]. From sums over the keys of r and n (docs/math.md
  // (4)), which are outputs of the core for pairs of columns of V = A3 Y and A2 as values.
  Tensor jacobians(int64_t stride) const {
    const AttentionData& x = of_.data_;
    const int64_t n1 = x.A1.size(1), d2 = x.A2.size(-1), outputs = x.B.size(-1);
    const auto some = [&](const Tensor& t, int64_t dim) { return stride == 1 ? t : t.slice(dim, 0, n1, stride); };
    AttentionSettings other = settings_;
    other.kind = x.kind == "exp" ? "exp" : x.kind == "cosh" ? "sinh" : "cosh";  // its a are the kind's r
    Point here = point_;
    here.query = some(point_.query, 1);
    if (here.mask.defined() && here.mask.size(-2) != 1) here.mask = some(here.mask, 1);
    if (x.is_causal && stride != 1) {
      other.is_causal = false;
      here.mask = with_causal(here.mask, stride);
    }
    AttentionSettings own = other;
    own.kind = x.kind;
    const Tensor V = at::matmul(x.A3, Y());
    here.value = x.A2;
    const Tensor r_keys = attention_forward(here, other).output;  // [s, r, d2]
    const Tensor n_keys = x.kind == "sinh" ? attention_forward(here, own).output : r_keys;
    const int64_t keys = std::max<int64_t>(x.A2.size(0) * x.A2.size(1) * d2, 1),
                  step = std::max<int64_t>(kPairs / keys, 1);
    std::vector<Tensor> parts;
    for (int64_t i = 0; i < outputs; i += step) {
      const Tensor some_outputs = V.slice(-1, i, std::min(i + step, outputs));
      here.value = (some_outputs.unsqueeze(-1) * x.A2.unsqueeze(-2)).flatten(-2);
      const Tensor sums = attention_forward(here, other).output;
      parts.push_back(sums.view({sums.size(0), sums.size(1), some_outputs.size(-1), d2}));
    }
    // In place from here: the largest array there is.
    Tensor J = parts.size() == 1 ? parts[0] : at::cat(parts, 2);
    const auto less = [&](const Tensor& a, const Tensor& b) { J.addcmul_(a.unsqueeze(-1), b.unsqueeze(-2), -1); };
    if (x.form == "rescaled") {
      less(some(x.B, 1), r_keys);
      return J.mul_(column(column(some(weight_, 1))));
    }
    less(some(at::matmul(saved_.output, Y()), 1), n_keys);  // of W Y
    if (!inverse_.defined()) return J;
    less(some(outputs_, 1), r_keys - column(some(saved_.balance, 1)) * n_keys);
    return J.mul_(column(column(some(inverse_, 1))));
  }
  // Which keys every `stride`-th row has.
  Tensor with_causal(const Tensor& mask, int64_t stride) const {
    const Tensor rows = at::arange(0, point_.query.size(1), stride, point_.query.options().dtype(at::kLong)),
                 keys = at::arange(point_.key.size(1), rows.options());
    const Tensor causal = (keys.unsqueeze(0) <= rows.unsqueeze(-1)).unsqueeze(0);
    return mask.defined() ? mask.logical_and(causal) : causal;
  }
  Tensor Y() const { return Y_.to(of_.data_.A3.options()); }

  const AttentionObjective& of_;
  Tensor X_, Y_;
  Point point_;
  AttentionSettings settings_;
  Saved saved_;
  Tensor weight_;   // [s, n1] e^(l - m), of the rescaled form
  Tensor inverse_;  // [s, n1] 1 / rho, of the normalized form of sinh
  Tensor features_, outputs_, residual_;
  Tensor gram_, white_;  // F^T F, and W with W W^T its inverse
  Tensor gradient_, jacobian_;
  bool all_rows_ = false, full_ = false;
  int64_t stride_ = 1;
};

AttentionObjective::AttentionObjective(AttentionData data, Grams grams)
    : data_(std::move(data)),
      grams_(std::move(grams)),
      penalty_(data_.A1, data_.A2, data_.regularization, data_.group) {}

std::unique_ptr<Place> AttentionObjective::at(const Tensor& unknowns) const {
  return std::make_unique<AttentionPlace>(*this, unknowns);
}
Tensor AttentionObjective::output_weights(const Tensor& unknowns) const {
  return AttentionPlace(*this, unknowns).output_weights();
}
double AttentionObjective::change(const Tensor&, const Tensor& direction) const {
  return std::sqrt(grams_.mean_square(direction.slice(0, 0, map_size()).view({data_.A1.size(-1), data_.A2.size(-1)})));
}
double AttentionObjective::epsilon() const {
  return data_.A1.scalar_type() == at::kDouble ? std::numeric_limits<double>::epsilon()
                                               : std::numeric_limits<float>::epsilon();
}

}  // namespace torch_rescaled::solvers
