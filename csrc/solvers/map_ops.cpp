// SPDX-License-Identifier: BSD-3-Clause
#include "map_ops.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/full.h>
#include <ATen/ops/stack.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "../ops/check.h"

namespace torch_rescaled::solvers {

using namespace rescaled::ops;

MapBatch::MapBatch(std::vector<int64_t> full, int64_t samples) : full_(std::move(full)) {
  const auto split = full_.end() - samples;
  sizes_.assign(full_.begin(), split);
  for (const int64_t size : sizes_) problems_ *= size;
  for (auto size = split; size != full_.end(); ++size) samples_ *= *size;
}

Tensor MapBatch::of(const Tensor& t, int64_t suffix, int64_t i, bool sampled, bool expanded) const {
  if (!t.defined()) return t;
  Tensor one = t.detach();
  const auto leading = static_cast<int64_t>(sampled ? full_.size() : sizes_.size());
  while (one.dim() < leading + suffix) one = one.unsqueeze(0);
  int64_t behind = problems_;
  for (const int64_t size : sizes_) {
    behind /= size;
    one = one.select(0, one.size(0) == 1 ? 0 : i / behind % size);
  }
  if (!sampled) return one;
  const int64_t rank = one.dim() - suffix;
  if (rank == 0) return one.unsqueeze(0);
  const bool same = std::all_of(one.sizes().begin(), one.sizes().begin() + rank, [](int64_t s) { return s == 1; });
  if (same && !expanded) return one.flatten(0, rank - 1);
  std::vector<int64_t> sizes(full_.end() - rank, full_.end());
  sizes.insert(sizes.end(), one.sizes().end() - suffix, one.sizes().end());
  return one.expand(sizes).flatten(0, rank - 1);
}

Tensor MapBatch::restored(const Tensor& t) const {
  std::vector<int64_t> sizes = sizes_;
  sizes.insert(sizes.end(), t.sizes().begin() + 1, t.sizes().end());
  return t.reshape(sizes);
}

MapResults solve_maps(const MapBatch& batch, bool side_by_side, const at::TensorOptions& type,
                      const GaussNewtonOptions& options, int64_t chunk, const Tensor& states,
                      const std::function<std::unique_ptr<MapTask>(int64_t)>& task,
                      const std::function<Tensor(int64_t)>& start) {
  const auto count = static_cast<size_t>(batch.problems());
  std::vector<GaussNewtonResult> found(count);
  std::vector<MapUnknowns> unknowns(count);
  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const auto at = static_cast<size_t>(i);
      const std::unique_ptr<MapTask> one = task(i);
      const Tensor state = batch.of(states, 1, i, /*sampled=*/false);
      const int64_t size = MapState::size(one->problem().final->size(), options.lbfgs);
      RESCALED_CHECK(VALUE, !state.defined() || state.size(0) == size, "solve", "state of shape [*, ", size,
                     "] as an earlier call with this problem and method returned it, got ", shape(states));
      const Tensor x0 = state.defined() ? Tensor() : one->start(start(i));
      found[at] = solve_map(one->problem(), options, x0, state, chunk);
      unknowns[at] = one->unknowns(found[at].unknowns);
    }
  };
  if (side_by_side)
    at::parallel_for(0, batch.problems(), 1, run);
  else
    run(0, batch.problems());

  int64_t lines = 0;
  for (const GaussNewtonResult& s : found) lines = std::max(lines, s.history.size(0));
  std::vector<Tensor> X, left, right, Y, summary, history, state;
  for (size_t i = 0; i < count; ++i) {
    X.push_back(unknowns[i].X), left.push_back(unknowns[i].left), right.push_back(unknowns[i].right);
    if (unknowns[i].Y.defined()) Y.push_back(unknowns[i].Y);
    summary.push_back(found[i].summary), state.push_back(found[i].state);
    Tensor padded = at::full({lines, MapHistory::count}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
    padded.slice(0, 0, found[i].history.size(0)).copy_(found[i].history);
    history.push_back(padded);
  }
  const auto joined = [&](const std::vector<Tensor>& list, bool as_given) {
    const Tensor all = batch.restored(at::stack(list));
    return as_given ? all.to(type) : all;
  };
  return {joined(X, true),        joined(left, true),     joined(right, true), Y.empty() ? Tensor() : joined(Y, true),
          joined(summary, false), joined(history, false), joined(state, false)};
}

void check_map_options(const char* op, const std::vector<int64_t>& full, int64_t rows, int64_t columns,
                       MAP_SOLVE_ARGUMENTS) {
  (void)X0, (void)mask, (void)is_causal, (void)kind, (void)form, (void)method, (void)group;
  const int64_t smaller = std::min(rows, columns);
  RESCALED_CHECK(VALUE, !rank || (*rank >= 1 && *rank <= smaller), op, "a rank from 1 to ", smaller, ", got ",
                 rank.value_or(0));
  RESCALED_CHECK(VALUE, sample_dims >= 0 && sample_dims <= static_cast<int64_t>(full.size()), op,
                 "sample_dims from 0 to the number of leading dimensions, ", full.size(), ", got ", sample_dims);
  RESCALED_CHECK(VALUE, std::find(full.begin(), full.end(), 0) == full.end(), op,
                 "leading dimensions without a 0, got ", at::IntArrayRef(full));
  RESCALED_CHECK(VALUE, max_iterations >= 0, op, "max_iterations >= 0, got ", max_iterations);
  RESCALED_CHECK(VALUE, cg_iterations >= 1, op, "cg_iterations >= 1, got ", cg_iterations);
  for (const auto& [name, value] : {std::pair<const char*, double>{"regularization", regularization},
                                    {"gtol", gtol},
                                    {"ftol", ftol},
                                    {"xtol", xtol},
                                    {"damping", damping}})
    RESCALED_CHECK(VALUE, value >= 0 && std::isfinite(value), op, "a finite ", name, " >= 0, got ", value);
  RESCALED_CHECK(VALUE, chunk >= 0, op, "chunk >= 0, got ", chunk);
  if (state.has_value())
    RESCALED_CHECK(TYPE, state->scalar_type() == at::kDouble, op, "state of dtype float64, got ", state->scalar_type());
}

double default_ftol(at::ScalarType type) { return type == at::kDouble ? 1e-12 : 1e-8; }

}  // namespace torch_rescaled::solvers
