// SPDX-License-Identifier: BSD-3-Clause
// Passes over vectors of n numbers, and A v: what a Newton iteration does beside its curvature. The vectors' arithmetic
// is float64 for every type: it costs little beside a read of A, and a line search compares losses to their last
// digits.
#include "pass.h"
#include "sum_parts.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Work of a row of the vector passes, in elements of a row of A.
constexpr int64_t kRowWork = 32;

template <class T>
struct MatvecScratch {
  T *v, *packed, *products;
  MatvecScratch(const RegressionParameters& p, Arena& arena) {
    v = arena.take<T>(round_up(p.columns, kLanes<T>)), products = arena.take<T>(kMostRows);
    packed = arena.take<T>(reads_in_place<T>(p) ? 0 : block_rows<T>(p) * p.columns);
  }
};

template <class T>
static void matvec_run(const RegressionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  MatvecScratch<T> s(p, arena);
  const Chunks chunks(p, p.columns);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / chunks.count, chunk = task % chunks.count;
    const InputView A = matrix(p.A, p, batch);
    const OutputView out = matrix(p.products, p, batch);
    load_vector<T>(matrix(p.v, p, batch), 0, p.columns, round_up(p.columns, kLanes<T>), s.v);
    for_blocks(chunks.begin(chunk), chunks.end(p, chunk), block_rows<T>(p), [&](Block block) {
      const BlockRows<T> a = block_of<T>(p, A, block, s.packed);
      products_of_rows<T>(a, block.count, round_up(block.count, kLanes<T>), p.columns, s.v, s.products);
      T* to = static_cast<T*>(out.data) + block.first * out.row;
      for (int64_t r = 0; r < block.count; r += kStreams, to += block.step * out.row) {
        const int64_t left = block.count - r < kStreams ? block.count - r : kStreams;
        for (int64_t k = 0; k < left; ++k) to[k * block.apart * out.row] = s.products[r + k];
      }
    });
  }
}

// Calls f(block) for contiguous blocks of rows: vectors alone are read in one stream.
template <class Function>
RESCALED_INLINE void for_rows(int64_t begin, int64_t end, Function f) {
  for (int64_t i = begin; i < end; i += kMostRows) f(Block{i, end - i < kMostRows ? end - i : kMostRows, kStreams, 1});
}

// logits + step direction, for the rows of a block; beyond the last row it is repeated.
static void load_logits(const RegressionParameters& p, int64_t batch, double step, Block block, int64_t padded,
                        RowBlock<double>& r) {
  load_rows<double>(matrix(p.logits, p, batch), block, padded, r.z);
  if (p.direction) {
    load_rows<double>(matrix(p.direction, p, batch), block, padded, r.t);
    for (int64_t i = 0; i < block.count; ++i) r.z[i] += step * r.t[i];
  }
  for (int64_t i = block.count; i < padded; ++i) r.z[i] = r.z[block.count - 1];
}

struct StatisticsParts {
  Sums* sums;  // [batches][steps][chunks]
  StatisticsParts(const RegressionParameters& p, Arena& arena)
      : sums(arena.take<Sums>(p.batches * p.steps_count * Chunks(p, kRowWork).count)) {}
};

static void statistics_run(const RegressionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena workspace(p.workspace), arena(memory);
  const StatisticsParts parts(p, workspace);
  RowBlock<double> r(arena);
  const Chunks chunks(p, kRowWork);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task % chunks.count, k = task / chunks.count % p.steps_count,
                  batch = task / chunks.count / p.steps_count;
    const RowInputs in(p, batch);
    const InputView steps = matrix(p.steps, p, batch);
    const double step = p.steps ? static_cast<const double*>(steps.data)[k * steps.row] : 0;
    Sums& sums = parts.sums[task] = Sums{};
    for_rows(chunks.begin(chunk), chunks.end(p, chunk), [&](Block block) {
      const int64_t padded = round_up(block.count, kLanes<double>);
      load_logits(p, batch, step, block, padded, r);
      load_targets<double>(in, block, padded, r);
      begin_rows<double>(p, block.count, padded, r, sums);
      add_rows<double, Vectors::none>(p, padded, r, sums);
    });
  }
}

// With the form, finished; or the sums as they are.
template <bool kFinished>
static void statistics_finish(const RegressionParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const StatisticsParts parts(p, workspace);
  const int64_t chunks = Chunks(p, kRowWork).count;
  for (int64_t task = begin; task < end; ++task) {
    Sums* const of = parts.sums + task * chunks;
    double exponent = of[0].exponent;
    for (int64_t chunk = 1; chunk < chunks; ++chunk)
      exponent = of[chunk].exponent > exponent ? of[chunk].exponent : exponent;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      rescale(of[chunk], exponent);
      if (chunk == 0) continue;
      recenter(of[chunk], of[0].center);
      join_sums(of[0], of[chunk]);
    }
    const OutputView out = matrix(p.statistics, p, task / p.steps_count);
    double* const to = static_cast<double*>(out.data) + task % p.steps_count * out.row;
    if constexpr (kFinished)
      write_statistics(of[0], p.form, to);
    else
      write_sums(of[0], to);
  }
}

// u, du in the units of the statistics: of e^shift, or divided by the sum of u in the normalized form.
static void fill_units(const RegressionParameters& p, const double* statistics, int64_t rows, int64_t padded,
                       RowBlock<double>& r) {
  using Statistics = RegressionStatistics;
  const bool normalized = p.form == Form::normalized;
  const double shift = normalized ? statistics[Statistics::log_sum] : statistics[Statistics::log_scale] / 2,
               exponent = __builtin_rint(shift * (1 / kLn2));
  if (p.kind == Kind::exp)
    fill_phi<double, false>(p.kind, exponent, rows, padded, r);
  else
    fill_phi<double, true>(p.kind, exponent, rows, padded, r);
  if (!normalized) return;
  const double factor = statistics[Statistics::sum_sign] * std::exp(exponent * kLn2 - shift);
  for (int64_t i = 0; i < padded; ++i) r.u[i] *= factor, r.du[i] *= factor;
}

template <class T>
static void rows_run(const RegressionParameters& p, int64_t begin, int64_t end, void* memory) {
  using Statistics = RegressionStatistics;
  using Row = RegressionRows;
  Arena arena(memory);
  RowBlock<double> r(arena);
  const Chunks chunks(p, kRowWork);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / chunks.count, chunk = task % chunks.count;
    const RowInputs in(p, batch);
    const double* const s = static_cast<const double*>(matrix(p.saved_statistics, p, batch).data);
    const OutputView out = matrix(p.row_values, p, batch);
    T* const to = static_cast<T*>(out.data);
    const double unit = s[Statistics::unit], beta = s[Statistics::beta], scale = -s[Statistics::log_scale],
                 unscaled = p.penalty_weight ? std::exp(scale < 600 ? scale : 600) : 0;
    for_rows(chunks.begin(chunk), chunks.end(p, chunk), [&](Block block) {
      const int64_t rows = block.count, padded = round_up(rows, kLanes<double>);
      load_logits(p, batch, 0, block, padded, r);
      load_targets<double>(in, block, padded, r);
      fill_units(p, s, rows, padded, r);
      const auto put = [&](int64_t row, int64_t i, double x) {
        to[row * out.row + block.first + i] = static_cast<T>(x);
      };
      for (int64_t i = 0; i < rows; ++i) {
        const double u = r.u[i], du = r.du[i], w = r.row_weight[i], aim = unit * r.b[i], inner = w * (u - aim) - beta;
        const double weight = p.penalty_weight ? r.penalty_weight[i] * r.penalty_weight[i] * unscaled : 0;
        const double noise =
            std::fabs(du) * (w * (std::fabs(u) + std::fabs(aim)) + std::fabs(beta)) + weight * std::fabs(r.z[i]);
        put(Row::gradient, i, du * inner + weight * r.z[i]);
        put(Row::diagonal, i, w * du * du + weight);
        put(Row::diagonal_rest, i, u * inner);
        put(Row::p, i, du);
        put(Row::q, i, p.form == Form::plain ? 0 : w * du * (p.form == Form::rescaled ? r.b[i] : u));
        put(Row::q_rest, i, p.form == Form::normalized ? du * inner : 0);
        put(Row::noise, i, noise * noise);
      }
    });
  }
}

struct ModelParts {
  double* sums;  // [batches][chunks][count]
  ModelParts(const RegressionParameters& p, Arena& arena)
      : sums(arena.take<double>(p.batches * Chunks(p, kRowWork).count * RegressionModel::count)) {}
};

template <class T>
static void model_run(const RegressionParameters& p, int64_t begin, int64_t end, void*) {
  using Row = RegressionRows;
  using Model = RegressionModel;
  Arena workspace(p.workspace);
  const ModelParts parts(p, workspace);
  const Chunks chunks(p, kRowWork);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / chunks.count, chunk = task % chunks.count, last = chunks.end(p, chunk);
    const InputView rows = matrix(p.resident_rows, p, batch), direction = matrix(p.direction, p, batch);
    const T* const r = static_cast<const T*>(rows.data);
    const T* const along = static_cast<const T*>(direction.data);
    double sum[Model::count] = {};
    for (int64_t i = chunks.begin(chunk); i < last; ++i) {
      const auto row = [&](int64_t k) { return double{r[k * rows.row + i]}; };
      const double t = double{along[i * direction.row]}, t2 = t * t, size = std::fabs(t);
      sum[Model::slope] += row(Row::gradient) * t;
      sum[Model::diagonal] += row(Row::diagonal) * t2;
      sum[Model::diagonal_rest] += row(Row::diagonal_rest) * t2;
      sum[Model::p] += row(Row::p) * t;
      sum[Model::q] += row(Row::q) * t;
      sum[Model::q_rest] += row(Row::q_rest) * t;
      if (size > sum[Model::largest] || size != size) sum[Model::largest] = size;
    }
    for (int64_t k = 0; k < Model::count; ++k) parts.sums[task * Model::count + k] = sum[k];
  }
}

static void model_finish(const RegressionParameters& p, int64_t begin, int64_t end, void*) {
  using Model = RegressionModel;
  Arena workspace(p.workspace);
  const ModelParts parts(p, workspace);
  const int64_t chunks = Chunks(p, kRowWork).count;
  for (int64_t batch = begin; batch < end; ++batch) {
    const double* const of = parts.sums + batch * chunks * Model::count;
    double* const to = static_cast<double*>(matrix(p.model, p, batch).data);
    for (int64_t k = 0; k < Model::count; ++k) {
      to[k] = of[k];
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        const double x = of[chunk * Model::count + k];
        to[k] = k != Model::largest ? to[k] + x : x > to[k] || x != x ? x : to[k];
      }
    }
  }
}

struct RowScratch {
  RowBlock<double> rows;
  RowScratch(const RegressionParameters&, Arena& arena) : rows(arena) {}
};
RESCALED_INLINE int64_t row_tasks(const RegressionParameters& p) { return p.batches * Chunks(p, kRowWork).count; }
}  // namespace

RegressionProgram regression_matvec(const RegressionParameters& p) {
  const int64_t tasks = p.batches * Chunks(p, p.columns).count;
  if (p.A.dtype == DType::float64) return {{{tasks, bytes_of<MatvecScratch<double>>(p), matvec_run<double>}}, 1, 0};
  return {{{tasks, bytes_of<MatvecScratch<float>>(p), matvec_run<float>}}, 1, 0};
}
template <bool kFinished>
static RegressionProgram statistics_program(const RegressionParameters& p) {
  return {{{row_tasks(p) * p.steps_count, bytes_of<RowScratch>(p), statistics_run},
           {p.batches * p.steps_count, 0, statistics_finish<kFinished>}},
          2,
          bytes_of<StatisticsParts>(p)};
}
RegressionProgram regression_statistics(const RegressionParameters& p) { return statistics_program<true>(p); }
RegressionProgram regression_part_statistics(const RegressionParameters& p) { return statistics_program<false>(p); }
RegressionProgram regression_rows(const RegressionParameters& p) {
  const bool wide = p.row_values.dtype == DType::float64;
  return {{{row_tasks(p), bytes_of<RowScratch>(p), wide ? rows_run<double> : rows_run<float>}}, 1, 0};
}
RegressionProgram regression_model(const RegressionParameters& p) {
  const bool wide = p.resident_rows.dtype == DType::float64;
  return {{{row_tasks(p), 0, wide ? model_run<double> : model_run<float>}, {p.batches, 0, model_finish}},
          2,
          bytes_of<ModelParts>(p)};
}

}  // namespace rescaled::RESCALED_ISA
