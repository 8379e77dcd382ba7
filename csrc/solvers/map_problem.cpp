// SPDX-License-Identifier: BSD-3-Clause
#include "map_problem.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/zeros.h>

#include <cmath>

namespace torch_rescaled::solvers {
namespace {

constexpr double kLeast = .02;  // root of the mean square of the logits that a column of the factors starts with

double form_number(const std::string& form) { return form == "rescaled" ? 0 : form == "plain" ? 2 : 1; }

}  // namespace

void MapTask::adopt(std::unique_ptr<Objective> final, std::unique_ptr<Objective> first, int64_t rows, int64_t columns,
                    std::optional<int64_t> rank) {
  final_ = std::move(final), first_ = std::move(first);
  rows_ = rows, columns_ = columns, rank_ = rank;
  problem_.final = final_.get(), problem_.first = first_.get();
  if (!rank) return;
  factored_final_ = std::make_unique<FactoredObjective>(*final_, rows, columns, *rank);
  problem_.final = factored_final_.get();
  if (!first_) return;
  factored_first_ = std::make_unique<FactoredObjective>(*first_, rows, columns, *rank);
  problem_.first = factored_first_.get();
}

Tensor MapTask::start(const Tensor& X0) const {
  const Tensor X = X0.defined() ? wide(X0).flatten() : target_start();
  const Tensor map = rank_ ? FactoredObjective::factors(X.view({rows_, columns_}), grams().left, grams().right, *rank_,
                                                        kLeast * std::sqrt(grams().logits))
                           : X;
  const Tensor seen = rank_ ? factored_final_->product(at::cat({map, rest(X)})).slice(0, 0, rows_ * columns_) : X;
  return at::cat({map, rest(seen)});
}

MapUnknowns MapTask::unknowns(const Tensor& vector) const {
  MapUnknowns out;
  const Tensor whole = rank_ ? factored_final_->product(vector) : vector;
  const int64_t rank = rank_.value_or(0);
  out.X = whole.slice(0, 0, rows_ * columns_).view({rows_, columns_});
  out.left = vector.slice(0, 0, rows_ * rank).view({rows_, rank});
  out.right = vector.slice(0, rows_ * rank, (rows_ + columns_) * rank).view({columns_, rank});
  out.Y = output(whole);
  return out;
}

Metric MapTask::metric(const Tensor& vector) const {
  const std::unique_ptr<Place> place = problem_.final->at(vector);
  place->curve(/*full=*/false);
  return {place->blocks(), problem_.final->epsilon()};
}

MatrixTask::MatrixTask(const MatrixData& data, const MatrixSettings& settings, std::optional<int64_t> rank)
    : data_(data), first_settings_(settings), grams_(data.A1, data.point.key, data.group) {
  std::unique_ptr<Objective> first;
  if (settings.form == "rescaled") {
    first_settings_.form = "normalized";
    first = std::make_unique<MatrixObjective>(data, first_settings_, grams_);
  }
  adopt(std::make_unique<MatrixObjective>(data, settings, grams_), std::move(first), data.A1.size(-1),
        data.point.key.size(-1), rank);
  problem_.form = form_number(settings.form), problem_.two_sided = settings.kind != "exp";
}
Tensor MatrixTask::target_start() const {
  return matrix_start(static_cast<const MatrixObjective&>(first_ ? *first_ : *final_), data_, first_settings_);
}

AttentionTask::AttentionTask(const AttentionData& data, std::optional<int64_t> rank)
    : data_(data), grams_(data.A1, data.A2, data.group) {
  AttentionData first = data, alone = data;
  alone.joint = false;
  reduced_ = std::make_unique<AttentionObjective>(alone, grams_);
  std::unique_ptr<Objective> normalized;
  if (data.form == "rescaled") {
    first.form = alone.form = "normalized";
    first_reduced_ = std::make_unique<AttentionObjective>(alone, grams_);
    normalized = std::make_unique<AttentionObjective>(first, grams_);
  }
  adopt(std::make_unique<AttentionObjective>(data, grams_), std::move(normalized), data.A1.size(-1), data.A2.size(-1),
        rank);
  problem_.form = form_number(data.form), problem_.two_sided = data.kind != "exp";
}
Tensor AttentionTask::target_start() const { return attention_start(reduced(), data_); }
Tensor AttentionTask::rest(const Tensor& X) const {
  return data_.joint ? reduced().output_weights(X).flatten() : MapTask::rest(X);
}
Tensor AttentionTask::output(const Tensor& unknowns) const {
  return static_cast<const AttentionObjective&>(*final_).output_weights(unknowns);
}

}  // namespace torch_rescaled::solvers
