// SPDX-License-Identifier: BSD-3-Clause
// One problem of a map's solver: its objectives, its start, and what its unknowns are.
#pragma once
#include <optional>

#include "factored.h"
#include "gauss_newton.h"
#include "map_start.h"

namespace torch_rescaled::solvers {

struct MapUnknowns {
  Tensor X, left, right, Y;  // float64; factors [d, 0] where there is no rank, Y undefined in a matrix regression
};

class MapTask {
 public:
  MapTask() = default;
  MapTask(const MapTask&) = delete;
  MapTask& operator=(const MapTask&) = delete;
  virtual ~MapTask() = default;
  const MapProblem& problem() const { return problem_; }
  // Unknowns from X (undefined: from the target).
  Tensor start(const Tensor& X0) const;
  MapUnknowns unknowns(const Tensor& vector) const;
  // Of the form asked for, at a vector of unknowns.
  Metric metric(const Tensor& vector) const;

 protected:
  // `first` may be none. Takes factors of the objectives where there is a rank.
  void adopt(std::unique_ptr<Objective> final, std::unique_ptr<Objective> first, int64_t rows, int64_t columns,
             std::optional<int64_t> rank);
  virtual Tensor target_start() const = 0;  // X as a vector
  virtual const Grams& grams() const = 0;
  virtual Tensor rest(const Tensor& X) const { return at::zeros_like(X.slice(0, 0, 0)); }  // unknowns beside X
  virtual Tensor output(const Tensor&) const { return {}; }                                // Y, of the whole's unknowns

  MapProblem problem_;
  std::unique_ptr<Objective> final_, first_;

 private:
  std::unique_ptr<FactoredObjective> factored_final_, factored_first_;
  int64_t rows_ = 0, columns_ = 0;
  std::optional<int64_t> rank_;
};

class MatrixTask : public MapTask {
 public:
  MatrixTask(const MatrixData&, const MatrixSettings&, std::optional<int64_t> rank);

 protected:
  Tensor target_start() const override;
  const Grams& grams() const override { return grams_; }

 private:
  MatrixData data_;
  MatrixSettings first_settings_;
  Grams grams_;
};

class AttentionTask : public MapTask {
 public:
  AttentionTask(const AttentionData&, std::optional<int64_t> rank);

 protected:
  Tensor target_start() const override;
  const Grams& grams() const override { return grams_; }
  Tensor rest(const Tensor& X) const override;
  Tensor output(const Tensor& unknowns) const override;

 private:
  const AttentionObjective& reduced() const { return first_reduced_ ? *first_reduced_ : *reduced_; }
  AttentionData data_;
  Grams grams_;
  std::unique_ptr<AttentionObjective> reduced_, first_reduced_;  // without Y among the unknowns
};

}  // namespace torch_rescaled::solvers
