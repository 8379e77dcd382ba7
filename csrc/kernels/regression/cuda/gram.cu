// SPDX-License-Identifier: BSD-3-Clause
// Gradient, Hessian and the gradient's rounding errors from the vectors of a point; and Gauss-Newton's Hessian beside
// the gradient of a pass. A is read once for every 64 columns that another block's 64 meet.
#include "gram.cuh"
#include "passes.cuh"

namespace rescaled {
namespace {

template <class T, bool kWhole>
__global__ void __launch_bounds__(kGramThreads, 1)
    gram_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ GramPlan plan) {
  RESCALED_SHARED(memory);
  GramBlock<T, kWhole>(p, plan, memory).run();
}

// D of Gauss-Newton at the kept logits, in units of the joined sums' exponent.
template <class S>
__global__ void __launch_bounds__(256, 1)
    diagonal_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ PassPlan pass,
                  const __grid_constant__ GramPlan plan) {
  const int64_t blocks = parts_of(p.rows, block_threads()), batch = block_index() / blocks,
                i = block_index() % blocks * block_threads() + thread_index();
  if (i >= p.rows) return;
  char* const workspace = static_cast<char*>(p.workspace);
  const Sums& sums = reinterpret_cast<const Sums*>(workspace + last_level(pass).sums)[batch];
  S u, du;
  phi_of<S>(p.kind, reinterpret_cast<const S*>(workspace + pass.logits)[batch * p.rows + i],
            static_cast<S>(sums.exponent), u, du);
  reinterpret_cast<S*>(workspace + plan.diagonal)[batch * p.rows + i] =
      RowInputs<S>(p, batch).load(i).row_weight * du * du;
}

// The sum over parts of kSumColumns numbers: of number thread_index(), in the threads below kSumColumns. `part` is how
// far parts are apart.
RESCALED_DEVICE double sum_of_parts(const double* from, int64_t part, int64_t count, double* memory) {
  const int column = thread_index() % kSumColumns, lanes = block_threads() / kSumColumns;
  double sum = 0;
  for (int64_t i = thread_index() / kSumColumns; i < count; i += lanes) sum += from[i * part + column];
  memory[thread_index()] = sum;
  block_barrier();
  if (thread_index() < kSumColumns)
    for (int i = 1; i < lanes; ++i) sum += memory[i * kSumColumns + column];
  return sum;
}

template <class S>
__global__ void __launch_bounds__(256, 1)
    sides_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ GramPlan plan) {
  RESCALED_SHARED(memory);
  const int64_t padded = plan.panels * kTile, groups = padded / kSumColumns, group = block_index() % groups,
                k = block_index() / groups % kSides, batch = block_index() / groups / kSides;
  char* const workspace = static_cast<char*>(p.workspace);
  const double* const from = reinterpret_cast<const double*>(workspace + plan.sides) +
                             (batch * plan.chunks * kSides + k) * padded + group * kSumColumns;
  const double sum = sum_of_parts(from, kSides * padded, plan.chunks, reinterpret_cast<double*>(memory));
  const int64_t column = group * kSumColumns + thread_index();
  if (thread_index() >= kSumColumns || column >= p.columns) return;
  reinterpret_cast<double*>(workspace + plan.totals)[(batch * kSides + k) * padded + column] = sum;
  const OutputView to = matrix(k == 0 ? p.gradient : p.noise, p, batch);
  if (k == 0 || k == kSides - 1) static_cast<S*>(to.data)[column * to.row] = static_cast<S>(sum);
}

// The two vectors of the Hessian's correction, and its numbers.
struct Correction {
  const double *vectors, *sides;  // joined, [.][columns]; or [kSides][padded]
  int64_t columns;
  Form form;
  Totals totals;
  double square, factor;
  RESCALED_MEMBER cuda::Sides at(int64_t j) const {
    if (sides != nullptr) return {sides[columns + j], sides[2 * columns + j]};
    return cuda::sides_at(form, totals, vectors[j], vectors[columns + j], vectors[2 * columns + j]);
  }
};

template <class S>
__global__ void __launch_bounds__(256, 1)
    hessian_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ PassPlan pass,
                 const __grid_constant__ GramPlan plan, int64_t groups) {
  RESCALED_SHARED(memory);
  const int64_t group = block_index() % groups, tile = block_index() / groups % plan.tiles,
                batch = block_index() / groups / plan.tiles;
  int64_t left = 0, right = tile;
  for (; right > left; ++left) right -= left + 1;
  char* const workspace = static_cast<char*>(p.workspace);
  const double* const from = reinterpret_cast<const double*>(workspace + plan.grams) +
                             (batch * plan.chunks * plan.tiles + tile) * kTile * kTile + group * kSumColumns;
  const double sum = sum_of_parts(from, plan.tiles * kTile * kTile, plan.chunks, reinterpret_cast<double*>(memory));
  const int64_t element = group * kSumColumns + thread_index(), i = left * kTile + element / kTile,
                j = right * kTile + element % kTile;
  if (thread_index() >= kSumColumns || i >= p.columns || j > i) return;
  Correction c{nullptr, nullptr, p.columns, p.form, {}, 0, 1};
  if (plan.resident) {
    c.columns = plan.panels * kTile;
    c.sides = reinterpret_cast<const double*>(workspace + plan.totals) + batch * kSides * c.columns;
    c.square = static_cast<const double*>(matrix(p.saved_statistics, p, batch).data)[RegressionStatistics::square];
  } else {
    c.vectors =
        reinterpret_cast<const double*>(workspace + last_level(pass).vectors) + batch * pass.vectors * p.columns;
    c.totals = cuda::totals_of(reinterpret_cast<const Sums*>(workspace + last_level(pass).sums)[batch], p.form);
    c.square = c.totals.square, c.factor = c.totals.factor;
  }
  const cuda::Sides row = c.at(i), column = c.at(j);
  const double value = sum / c.factor + c.square * row.p * column.p - row.p * column.q - row.q * column.p;
  const OutputView hessian = matrix(p.hessian, p, batch);
  S* const to = static_cast<S*>(hessian.data);
  to[i * hessian.row + j * hessian.column] = to[j * hessian.row + i * hessian.column] = static_cast<S>(value);
}

template <class T>
const char* run(const RegressionParameters& p, const PassPlan& pass, const GramPlan& plan, void* stream) {
  using S = Number<T>;
  constexpr int threads = 256;
  constexpr int64_t shared = threads * int64_t{sizeof(double)};
  const char* error = nullptr;
  if (!plan.resident)
    error = launch(diagonal_walk<S>, p.batches * parts_of(p.rows, threads), threads, 0, stream, p, pass, plan);
  if (error == nullptr)
    error = launch(plan.whole ? gram_walk<T, true> : gram_walk<T, false>, p.batches * plan.chunks * plan.tiles,
                   kGramThreads, sizeof(GramMemory<T>), stream, p, plan);
  if (error == nullptr && plan.resident)
    error = launch(sides_walk<S>, p.batches * kSides * (plan.padded() / kSumColumns), threads, shared, stream, p, plan);
  const int64_t rows = at_most(p.columns, kTile), groups = rows * kTile / kSumColumns;
  return error != nullptr
             ? error
             : launch(hessian_walk<S>, p.batches * plan.tiles * groups, threads, shared, stream, p, pass, plan, groups);
}

}  // namespace

const char* regression_gram(const RegressionParameters& p, const PassPlan& pass, const GramPlan& plan, void* stream) {
  return with_element_type(p.A.dtype, [&](auto element) { return run<decltype(element)>(p, pass, plan, stream); });
}

}  // namespace rescaled
