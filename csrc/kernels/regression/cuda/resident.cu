// SPDX-License-Identifier: BSD-3-Clause
// Passes over vectors of n numbers, in float64 for every type (../cpu/resident.cpp says why).
#include "join.cuh"
#include "passes.cuh"

namespace rescaled {
namespace {

constexpr int kVectorThreads = 128, kVectorWarps = kVectorThreads / 32;
constexpr int kRowsOfLane = 2;  // at a time
constexpr int kJoinStatistics = 64;
using StatisticsSums = RowSums<double, Vectors::none>;

// Rows of a block of a pass over vectors, and such blocks of a problem.
struct VectorPlan {
  int64_t rows = 0, chunks = 0;
};
VectorPlan vector_plan(const RegressionParameters& p) {
  const int64_t wanted = at_least(2 * kBlockUnit / p.batches, 1), unit = kVectorThreads * kRowsOfLane;
  const int64_t rows = parts_of(parts_of(p.rows, wanted), unit) * unit;
  return {rows, parts_of(p.rows, rows)};
}

// [batches][steps][chunks] parts, level 0; then fewer.
struct StatisticsPlan {
  VectorPlan vectors;
  Parts level[3];
  int levels = 0;
  int64_t bytes = 0;
};
StatisticsPlan statistics_plan(const RegressionParameters& p) {
  StatisticsPlan plan;
  plan.vectors = vector_plan(p);
  Space space;
  for (int64_t count = plan.vectors.chunks;; count = parts_of(count, kMostParts)) {
    Parts& parts = plan.level[plan.levels++];
    parts.count = count, parts.sums = space.take(p.batches * p.steps_count * count, sizeof(Sums));
    if (plan.levels > 1 && count == 1) break;
  }
  plan.bytes = space.bytes;
  return plan;
}

RESCALED_DEVICE Sums* sums_at(const RegressionParameters& p, const Parts& parts) {
  return reinterpret_cast<Sums*>(static_cast<char*>(p.workspace) + parts.sums);
}

// Blocks of the same rows at neighboring steps run together, and share what they read.
__global__ void __launch_bounds__(kVectorThreads, 1)
    statistics_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ StatisticsPlan plan) {
  RESCALED_SHARED(memory);
  const int lane = thread_index() % 32, warp = thread_index() / 32;
  const int64_t k = block_index() % p.steps_count, chunk = block_index() / p.steps_count % plan.vectors.chunks,
                batch = block_index() / p.steps_count / plan.vectors.chunks;
  const RowInputs<double> in(p, batch);
  const InputView logits = matrix(p.logits, p, batch), direction = matrix(p.direction, p, batch),
                  steps = matrix(p.steps, p, batch);
  const double by = steps ? static_cast<const double*>(steps.data)[k * steps.row] : 0;
  StatisticsSums sums(p);
  Coefficients<double, Vectors::none> unused;
  const int64_t begin = chunk * plan.vectors.rows, end = at_most(begin + plan.vectors.rows, p.rows);
  constexpr int kTile = 32 * kRowsOfLane;
  for (int64_t at = begin; at < end; at += kVectorWarps * kTile) {
    const int64_t first = at + warp * kTile + lane;
    double z[kRowsOfLane], top = -infinity<double>();
    Row<double> row[kRowsOfLane];
    RESCALED_UNROLL for (int r = 0; r < kRowsOfLane; ++r) {
      const int64_t i = first + 32 * r, there = i < p.rows ? i : p.rows - 1;
      row[r] = in.load(i);
      z[r] = number_at<double>(logits, there);
      if (direction) z[r] += by * number_at<double>(direction, there);
    }
    RESCALED_UNROLL for (int r = 0; r < kRowsOfLane; ++r) top = greater(top, sums.exponent_of(z[r], row[r].b));
    sums.raise(top, at == begin);
    if (at == begin) {
      double product = 0, square = 0;
      RESCALED_UNROLL for (int r = 0; r < kRowsOfLane; ++r) {
        double u, du;
        sums.phi(row[r], z[r], u, du);
        product += row[r].row_weight * u * row[r].b, square += row[r].row_weight * row[r].b * row[r].b;
      }
      sums.predict(product, square);
    }
    RESCALED_UNROLL for (int r = 0; r < kRowsOfLane; ++r) sums.add(row[r], z[r], 0, unused);
  }
  Sums* const of_warps = reinterpret_cast<Sums*>(memory);
  Joint<kVectorWarps>& joint = *reinterpret_cast<Joint<kVectorWarps>*>(of_warps + kVectorWarps);
  const Sums all = sums.all();
  if (lane == 0) of_warps[warp] = all;
  block_barrier();
  join_parts(joint, of_warps, kVectorWarps);
  if (thread_index() == 0)
    sums_at(p, plan.level[0])[(batch * p.steps_count + k) * plan.vectors.chunks + chunk] = joint.all;
}

__global__ void __launch_bounds__(kJoinStatistics, 1)
    statistics_join(const __grid_constant__ RegressionParameters p, const __grid_constant__ StatisticsPlan plan,
                    int level) {
  RESCALED_SHARED(memory);
  Joint<kMostParts>& joint = *reinterpret_cast<Joint<kMostParts>*>(memory);
  const Parts &from = plan.level[level - 1], &to = plan.level[level];
  const int64_t group = block_index() % to.count, point = block_index() / to.count,
                left = from.count - group * kMostParts;
  join_parts(joint, sums_at(p, from) + point * from.count + group * kMostParts,
             static_cast<int>(left < kMostParts ? left : kMostParts));
  if (thread_index() != 0) return;
  sums_at(p, to)[point * to.count + group] = joint.all;
  if (level != plan.levels - 1) return;
  const OutputView out = matrix(p.statistics, p, point / p.steps_count);
  cuda::write_statistics(joint.all, p.form, static_cast<double*>(out.data) + point % p.steps_count * out.row);
}

// u, du in the units of the statistics: of e^shift, or divided by the sum of u in the normalized form.
struct Units {
  double exponent, factor;
  RESCALED_MEMBER Units(Form form, const double* statistics) : exponent(0), factor(1) {
    using Statistics = RegressionStatistics;
    const bool normalized = form == Form::normalized;
    const double shift = normalized ? statistics[Statistics::log_sum] : statistics[Statistics::log_scale] / 2;
    exponent = rint(shift * (1 / kLn2));
    if (normalized) factor = statistics[Statistics::sum_sign] * exp(exponent * kLn2 - shift);
  }
};

template <class T>
__global__ void __launch_bounds__(kVectorThreads, 1) rows_walk(const __grid_constant__ RegressionParameters p) {
  using Statistics = RegressionStatistics;
  using Values = RegressionRows;
  const int64_t blocks = parts_of(p.rows, kVectorThreads), batch = block_index() / blocks,
                i = block_index() % blocks * kVectorThreads + thread_index();
  if (i >= p.rows) return;
  const double* const s = static_cast<const double*>(matrix(p.saved_statistics, p, batch).data);
  const Units units(p.form, s);
  const Row<double> row = RowInputs<double>(p, batch).load(i);
  const double z = number_at<double>(matrix(p.logits, p, batch), i), scale = -s[Statistics::log_scale];
  double u, du;
  phi_of<double>(p.kind, z, units.exponent, u, du);
  u *= units.factor, du *= units.factor;
  const double w = row.row_weight, beta = s[Statistics::beta], aim = s[Statistics::unit] * row.b,
               inner = w * (u - aim) - beta;
  double weight = 0;
  if (p.penalty_weight.data != nullptr)
    weight = row.penalty_weight * row.penalty_weight * exp(scale < 600 ? scale : 600);
  const double noise = fabs(du) * (w * (fabs(u) + fabs(aim)) + fabs(beta)) + weight * fabs(z);
  const OutputView out = matrix(p.row_values, p, batch);
  T* const to = static_cast<T*>(out.data) + i * out.column;
  const auto put = [&](int64_t k, double x) { to[k * out.row] = static_cast<T>(x); };
  put(Values::gradient, du * inner + weight * z);
  put(Values::diagonal, w * du * du + weight);
  put(Values::diagonal_rest, u * inner);
  put(Values::p, du);
  put(Values::q, p.form == Form::plain ? 0 : w * du * (p.form == Form::rescaled ? row.b : u));
  put(Values::q_rest, p.form == Form::normalized ? du * inner : 0);
  put(Values::noise, noise * noise);
}

// Sums, and the largest |t|, a NaN above all.
struct ModelSums {
  double of[RegressionModel::count];
  RESCALED_MEMBER void join(int k, double x) {
    if (k != RegressionModel::largest)
      of[k] += x;
    else if (x > of[k] || x != x)
      of[k] = x;
  }
};
// Over the block, in a fixed order: in thread 0.
RESCALED_DEVICE void join_block(ModelSums& s, ModelSums* of_warps) {
  RESCALED_UNROLL for (int k = 0; k < RegressionModel::count; ++k) RESCALED_UNROLL for (int bit = 1; bit < 32; bit *= 2)
      s.join(k, shuffle_xor(s.of[k], bit));
  if (thread_index() % 32 == 0) of_warps[thread_index() / 32] = s;
  block_barrier();
  if (thread_index() != 0) return;
  for (int warp = 1; warp < kVectorWarps; ++warp)
    for (int k = 0; k < RegressionModel::count; ++k) s.join(k, of_warps[warp].of[k]);
}

__global__ void __launch_bounds__(kVectorThreads, 1)
    model_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ VectorPlan plan) {
  RESCALED_SHARED(memory);
  using Values = RegressionRows;
  using Model = RegressionModel;
  const int64_t chunk = block_index() % plan.chunks, batch = block_index() / plan.chunks, begin = chunk * plan.rows,
                end = at_most(begin + plan.rows, p.rows);
  const InputView rows = matrix(p.resident_rows, p, batch), direction = matrix(p.direction, p, batch);
  ModelSums s = {};
  for (int64_t i = begin + thread_index(); i < end; i += kVectorThreads) {
    const auto value = [&](int64_t k) {
      return number_at<double>({rows.data, rows.dtype, 1, 0}, k * rows.row + i * rows.column);
    };
    const double t = number_at<double>(direction, i), square = t * t;
    s.join(Model::slope, value(Values::gradient) * t);
    s.join(Model::diagonal, value(Values::diagonal) * square);
    s.join(Model::diagonal_rest, value(Values::diagonal_rest) * square);
    s.join(Model::p, value(Values::p) * t);
    s.join(Model::q, value(Values::q) * t);
    s.join(Model::q_rest, value(Values::q_rest) * t);
    s.join(Model::largest, fabs(t));
  }
  join_block(s, reinterpret_cast<ModelSums*>(memory));
  if (thread_index() == 0) static_cast<ModelSums*>(p.workspace)[batch * plan.chunks + chunk] = s;
}

__global__ void __launch_bounds__(kVectorThreads, 1)
    model_join(const __grid_constant__ RegressionParameters p, const __grid_constant__ VectorPlan plan) {
  RESCALED_SHARED(memory);
  const int64_t batch = block_index();
  const ModelSums* const parts = static_cast<const ModelSums*>(p.workspace) + batch * plan.chunks;
  ModelSums s = {};
  for (int64_t i = thread_index(); i < plan.chunks; i += kVectorThreads)
    for (int k = 0; k < RegressionModel::count; ++k) s.join(k, parts[i].of[k]);
  join_block(s, reinterpret_cast<ModelSums*>(memory));
  if (thread_index() != 0) return;
  double* const to = static_cast<double*>(matrix(p.model, p, batch).data);
  for (int k = 0; k < RegressionModel::count; ++k) to[k] = s.of[k];
}

}  // namespace

int64_t regression_statistics_bytes(const RegressionParameters& p) { return statistics_plan(p).bytes; }
const char* regression_statistics(const RegressionParameters& p, void* stream) {
  const StatisticsPlan plan = statistics_plan(p);
  const int64_t points = p.batches * p.steps_count;
  const char* error = launch(statistics_walk, points * plan.vectors.chunks, kVectorThreads,
                             kVectorWarps * sizeof(Sums) + sizeof(Joint<kVectorWarps>), stream, p, plan);
  for (int i = 1; i < plan.levels && error == nullptr; ++i)
    error = launch(statistics_join, points * plan.level[i].count, kJoinStatistics, sizeof(Joint<kMostParts>), stream, p,
                   plan, i);
  return error;
}

const char* regression_rows(const RegressionParameters& p, void* stream) {
  const int64_t blocks = p.batches * parts_of(p.rows, kVectorThreads);
  return launch(p.row_values.dtype == DType::float64 ? rows_walk<double> : rows_walk<float>, blocks, kVectorThreads, 0,
                stream, p);
}

int64_t regression_model_bytes(const RegressionParameters& p) {
  return p.batches * vector_plan(p).chunks * int64_t{sizeof(ModelSums)};
}
const char* regression_model(const RegressionParameters& p, void* stream) {
  const VectorPlan plan = vector_plan(p);
  constexpr int64_t shared = kVectorWarps * sizeof(ModelSums);
  const char* error = launch(model_walk, p.batches * plan.chunks, kVectorThreads, shared, stream, p, plan);
  return error != nullptr ? error : launch(model_join, p.batches, kVectorThreads, shared, stream, p, plan);
}

}  // namespace rescaled
