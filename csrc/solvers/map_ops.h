// SPDX-License-Identifier: BSD-3-Clause
// What the two solvers of maps share as operators: batches of problems and samples, options, results.
#pragma once
#include <ATen/Parallel.h>

#include <functional>
#include <vector>

#include "../ops/dispatch.h"
#include "map_problem.h"

namespace torch_rescaled::solvers {

using rescaled::ops::MaybeTensor;

// The parameters both operators end in, and they by name: of the public ones, and of those that run.
#define MAP_SOLVE_PUBLIC                                                                                             \
  const MaybeTensor &X0, const MaybeTensor &attn_mask, bool is_causal, double regularization, c10::string_view kind, \
      c10::string_view form, std::optional<int64_t> rank, int64_t sample_dims, c10::string_view method,              \
      std::optional<int64_t> max_iterations, int64_t cg_iterations, double gtol, std::optional<double> ftol,         \
      double xtol, double damping, std::optional<c10::string_view> group, std::optional<int64_t> chunk,              \
      const MaybeTensor &state
#define MAP_SOLVE_ARGUMENTS                                                                                          \
  const MaybeTensor &X0, const MaybeTensor &mask, const MaybeTensor &state, bool is_causal, double regularization,   \
      c10::string_view kind, c10::string_view form, std::optional<int64_t> rank, int64_t sample_dims,                \
      c10::string_view method, int64_t max_iterations, int64_t cg_iterations, double gtol, double ftol, double xtol, \
      double damping, std::optional<c10::string_view> group, int64_t chunk
#define THE_MAP_SOLVE                                                                                               \
  X0, mask, state, is_causal, regularization, kind, form, rank, sample_dims, method, max_iterations, cg_iterations, \
      gtol, ftol, xtol, damping, group, chunk

// Leading dimensions: first those of problems, then `samples` along which losses are summed.
class MapBatch {
 public:
  MapBatch(std::vector<int64_t> full, int64_t samples);
  int64_t problems() const { return problems_; }
  int64_t samples() const { return samples_; }
  // Of problem i: [s, ...] where `sampled` and broadcast over samples if `expanded`, else without leading dimensions.
  Tensor of(const Tensor& t, int64_t suffix, int64_t i, bool sampled, bool expanded = false) const;
  // [problems, ...] with the problems' dimensions in front.
  Tensor restored(const Tensor& t) const;
  const std::vector<int64_t>& problem_sizes() const { return sizes_; }

 private:
  std::vector<int64_t> full_, sizes_;
  int64_t problems_ = 1, samples_ = 1;
};

struct MapResults {
  Tensor X, left, right, Y, summary, history, state;
};

// Solves problems one after another, or side by side where each is small. `start(i)`: X0 or undefined.
MapResults solve_maps(const MapBatch& batch, bool side_by_side, const at::TensorOptions& type,
                      const GaussNewtonOptions& options, int64_t chunk, const Tensor& states,
                      const std::function<std::unique_ptr<MapTask>(int64_t)>& task,
                      const std::function<Tensor(int64_t)>& start);

// What the public operators check and fill in alike.
void check_map_options(const char* op, const std::vector<int64_t>& full, int64_t rows, int64_t columns,
                       MAP_SOLVE_ARGUMENTS);
double default_ftol(at::ScalarType type);
// A step of L-BFGS costs about an evaluation, one of Gauss-Newton's dozens.
inline int64_t default_iterations(c10::string_view method) { return method.substr(0, 5) == "lbfgs" ? 1000 : 100; }

}  // namespace torch_rescaled::solvers
