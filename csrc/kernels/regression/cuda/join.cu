// SPDX-License-Identifier: BSD-3-Clause
// The blocks' parts joined into one a problem, level by level; the last level writes the results.
#include "join.cuh"
#include "passes.cuh"

namespace rescaled {
namespace {

struct JoinStep {
  Parts from, to;
  int vectors;
  bool is_last;
};

template <Vectors kVectors>
RESCALED_DEVICE void finish_column(const RegressionParameters& p, const Sums& sums, const double (&h)[8], int64_t batch,
                                   int64_t column) {
  constexpr int kCount = kVectorCount<kVectors>;
  const Totals t = cuda::totals_of(sums, p.form);
  double value;
  if constexpr (kVectors == Vectors::gradient)
    value = cuda::gradient_at(t, h[0], h[1], h[2]);
  else if (p.form == Form::plain)
    value = h[0];
  else
    value = cuda::product_at(p, sums, t, {h[0], h[1], h[2], h[3], h[4], h[5]});
  if (p.penalty_weight.data != nullptr) value += cuda::unscaled_factor(sums, p.form) * h[kCount];
  const OutputView vector = matrix(p.vector, p, batch);
  static_cast<double*>(vector.data)[column * vector.row] = value;
}

// A block joins up to kMostParts parts of a problem, at kJoinColumns columns. From: of the parts' vectors.
template <class From, Vectors kVectors>
__global__ void __launch_bounds__(kJoinThreads, 1)
    join_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ JoinStep step) {
  RESCALED_SHARED(memory);
  Joint<kMostParts>& joint = *reinterpret_cast<Joint<kMostParts>*>(memory);
  double* const all = reinterpret_cast<double*>(&joint + 1);  // [vectors][kJoinColumns]
  const int64_t blocks = parts_of(p.columns, kJoinColumns), first = block_index() % blocks * kJoinColumns,
                group = block_index() / blocks % step.to.count, batch = block_index() / blocks / step.to.count;
  const int64_t part = group * kMostParts, left = step.from.count - part;
  const int count = static_cast<int>(left < kMostParts ? left : kMostParts);
  char* const workspace = static_cast<char*>(p.workspace);
  const int64_t from_part = batch * step.from.count + part, to_part = batch * step.to.count + group;
  join_parts(joint, reinterpret_cast<const Sums*>(workspace + step.from.sums) + from_part, count);
  const From* const from =
      reinterpret_cast<const From*>(workspace + step.from.vectors) + from_part * step.vectors * p.columns;
  double* const to = reinterpret_cast<double*>(workspace + step.to.vectors) + to_part * step.vectors * p.columns;
  for (int i = thread_index(); i < step.vectors * kJoinColumns; i += block_threads()) {
    const int k = i / kJoinColumns;
    const int64_t column = first + i % kJoinColumns;
    if (column >= p.columns) continue;
    const double sum = joined<kVectors>(joint, count, k, [&](int of_part, int vector) {
      return from[(int64_t{of_part} * step.vectors + vector) * p.columns + column];
    });
    all[i] = to[k * p.columns + column] = sum;
  }
  if (thread_index() == 0 && first == 0) {
    reinterpret_cast<Sums*>(workspace + step.to.sums)[to_part] = joint.all;
    if (step.is_last && p.statistics.data != nullptr)
      cuda::write_statistics(joint.all, p.form, static_cast<double*>(matrix(p.statistics, p, batch).data));
  }
  if (!step.is_last) return;
  block_barrier();
  for (int i = thread_index(); i < kJoinColumns && first + i < p.columns; i += block_threads()) {
    double h[8] = {};
    for (int k = 0; k < step.vectors; ++k) h[k] = all[k * kJoinColumns + i];
    finish_column<kVectors>(p, joint.all, h, batch, first + i);
  }
}

template <class S, Vectors kVectors>
const char* join_levels(const RegressionParameters& p, const PassPlan& plan, void* stream) {
  const int64_t blocks = p.batches * parts_of(p.columns, kJoinColumns),
                shared = sizeof(Joint<kMostParts>) + plan.vectors * kJoinColumns * sizeof(double);
  const char* error = nullptr;
  for (int i = 1; i < plan.levels && error == nullptr; ++i) {
    const JoinStep step{plan.level[i - 1], plan.level[i], plan.vectors, i == plan.levels - 1};
    error = launch(i == 1 ? join_walk<S, kVectors> : join_walk<double, kVectors>, blocks * step.to.count, kJoinThreads,
                   shared, stream, p, step);
  }
  return error;
}

}  // namespace

const char* regression_join(const RegressionParameters& p, const PassPlan& plan, bool product, void* stream) {
  if (p.A.dtype == DType::float64)
    return product ? join_levels<double, Vectors::product>(p, plan, stream)
                   : join_levels<double, Vectors::gradient>(p, plan, stream);
  return product ? join_levels<float, Vectors::product>(p, plan, stream)
                 : join_levels<float, Vectors::gradient>(p, plan, stream);
}

}  // namespace rescaled
