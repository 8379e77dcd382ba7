// SPDX-License-Identifier: BSD-3-Clause
// The Hessian of a sparse A, pair by pair of a row's values, in fixed point (fixed.cuh): two integers a number.
#include "fixed.cuh"
#include "rows.cuh"
#include "table.cuh"

namespace rescaled {
namespace {

// |D a_i a_j| < 2^((code_i + code_j) / 2 - 1022) by the codes of D a_i^2 and D a_j^2; twice as much where a row has two
// values in a column.
RESCALED_DEVICE int32_t code_of_pair(int32_t i, int32_t j) {
  if (((i | j) & kSpecial) != 0) return kNotANumber;
  return ((i == 0 ? 1 : i) + (j == 0 ? 1 : j) + 1) / 2 + 1;
}
// The number of a sum's terms is below that of the values times that of a row's. Where float32 asks for no more, the
// second integers are left out.
constexpr int kFewBits = 30;
RESCALED_DEVICE int bits_of_pairs(const CsrParameters& p, const WalkPlan& plan, int64_t batch) {
  const int bits = bits_of_terms(plan.room + workspace_at<int32_t>(p, plan.longest)[batch]);
  return bits < 2 ? 2 : bits;
}

template <class T, class Index>
__global__ void __launch_bounds__(kThreads, 4)
    csr_gram_walk(const __grid_constant__ CsrParameters p, const __grid_constant__ WalkPlan plan, int64_t offset) {
  using Row = RegressionRows;
  using S = Number<T>;
  RESCALED_SHARED(memory);
  const int64_t batch = block_index() / plan.chunks, d = p.columns;
  const SparseRows<T, Index> a(p, batch);
  const InputView rows = matrix(p.resident_rows, p, batch);
  const int32_t* const codes = workspace_at<int32_t>(p, plan.codes) + batch * d;
  uint64_t* const gram = workspace_at<uint64_t>(p, offset) + batch * d * d * 2;
  const Table<2> table(memory, plan.slots);
  block_barrier();
  const int bits = bits_of_pairs(p, plan, batch);
  const bool full = p.curvature == Curvature::full, clipped = p.curvature == Curvature::clipped;
  const bool one_word = sizeof(S) == 4 && bits >= kFewBits;
  for_rows(p, plan, [&](int64_t row, int lane) {
    const auto of = [&](int64_t k) {
      return static_cast<double>(static_cast<const S*>(rows.data)[k * rows.row + row * rows.column]);
    };
    const auto span = a.span(row);
    double weight = of(Row::diagonal);
    if (full || clipped) {
      const double rest = of(Row::diagonal_rest);
      if (full || rest > 0) weight += rest;
    }
    for (int64_t k = span.begin; k < span.end; ++k) {
      const Index i = a.col[k];
      if (!a.has(i)) continue;
      const double weighted = weight * static_cast<double>(value_of(a.values[k]));
      const int32_t code = codes[i];
      for (int64_t l = span.begin + lane; l <= k; l += plan.lanes) {
        const Index j = a.col[l];
        if (!a.has(j)) continue;
        const int32_t pair = code_of_pair(code, codes[j]);
        double part = weighted * static_cast<double>(value_of(a.values[l]));
        if (i == j && k != l) part *= 2;
        if (pair == kNotANumber || part == 0) continue;
        const Term<2> term(part, pair, bits);
        const int64_t key = int64_t{i > j ? i : j} * d + int64_t{i > j ? j : i};
        const int slot = table.find(key);
        table.add(slot, 0, gram + 2 * key, term.word[0]);
        if (!one_word) table.add(slot, 1, gram + 2 * key + 1, term.word[1]);
      }
    }
  });
  block_barrier();
  table.flush(gram);
}

// Thread by thread a number of the Hessian.
template <class T>
__global__ void __launch_bounds__(kThreads, 1)
    csr_gram_write(const __grid_constant__ CsrParameters p, const __grid_constant__ WalkPlan plan, int64_t offset) {
  using S = Number<T>;
  const int64_t number = int64_t{block_index()} * kThreads + thread_index(), d = p.columns;
  if (number >= p.batches * d * d) return;
  const int64_t batch = number / (d * d), row = number / d % d, column = number % d;
  const int64_t i = row > column ? row : column, j = row > column ? column : row;
  const int32_t* const codes = workspace_at<int32_t>(p, plan.codes) + batch * d;
  const double* const sides = workspace_at<double>(p, plan.sides) + batch * 3 * d;
  const double square =
      static_cast<const double*>(matrix(p.saved_statistics, p, batch).data)[RegressionStatistics::square];
  double sum = value_of_sum<2>(workspace_at<uint64_t>(p, offset) + ((batch * d + i) * d + j) * 2,
                               code_of_pair(codes[i], codes[j]), bits_of_pairs(p, plan, batch));
  const double p_i = sides[d + i], p_j = sides[d + j], q_i = sides[2 * d + i], q_j = sides[2 * d + j];
  sum += square * p_i * p_j - p_i * q_j - q_i * p_j;
  const OutputView out = matrix(p.hessian, p, batch);
  static_cast<S*>(out.data)[row * out.row + column * out.column] = static_cast<S>(sum);
}

}  // namespace

const char* csr_gram(const CsrParameters& p, const WalkPlan& given, int64_t offset, void* stream) {
  WalkPlan plan = given;
  const double values = static_cast<double>(p.nonzeros), rows = static_cast<double>(p.rows > 0 ? p.rows : 1);
  plan.slots = slots_of(p.columns * p.columns, values * (values / rows + 1) / 2 / static_cast<double>(plan.chunks),
                        Table<2>::kSlotBytes);
  const char* error = with_types(p, [&](auto element, auto index) {
    return launch(csr_gram_walk<decltype(element), decltype(index)>, p.batches * plan.chunks, kThreads,
                  plan.slots * int64_t{Table<2>::kSlotBytes}, stream, p, plan, offset);
  });
  if (error != nullptr) return error;
  return with_types(p, [&](auto element, auto) {
    return launch(csr_gram_write<decltype(element)>, (p.batches * p.columns * p.columns + kThreads - 1) / kThreads,
                  kThreads, 0, stream, p, plan, offset);
  });
}

}  // namespace rescaled
