// SPDX-License-Identifier: BSD-3-Clause
// Sums of a sparse A's rows: A^T w for some w, deterministic by fixed point (fixed.cuh). One read of A raises the
// sums' codes, one adds the terms up: in a table in shared memory, of columns that came first in their slot, and in
// the second-level cache. A column that most rows have is nearly always in the table: its terms would wait for each
// other there.
#include "fixed.cuh"
#include "rows.cuh"
#include "table.cuh"

namespace rescaled {
namespace {

template <class T>
constexpr int kWords = std::is_same_v<T, double> ? 2 : 1;

// What a row's values are multiplied by.
template <class S, Source kSource>
struct Coefficients {
  const S* data;
  int64_t vector, row;
  bool full, clipped;
  RESCALED_MEMBER Coefficients(const CsrParameters& p, const WalkPlan& plan, int64_t batch)
      : full(p.curvature == Curvature::full), clipped(p.curvature == Curvature::clipped) {
    const InputView from = matrix(kSource == Source::given && !plan.resident ? p.weights : p.resident_rows, p, batch);
    data = static_cast<const S*>(from.data) + plan.first * from.row, vector = from.row, row = from.column;
  }
  RESCALED_MEMBER double of(int64_t k, int64_t i) const { return static_cast<double>(data[k * vector + i * row]); }
  RESCALED_MEMBER double operator()(int k, int64_t i) const {
    using Row = RegressionRows;
    if constexpr (kSource == Source::sides)
      return k == 0 ? of(Row::gradient, i) : k == 1 ? of(Row::p, i) : of(Row::q, i) + (full ? of(Row::q_rest, i) : 0);
    if constexpr (kSource == Source::diagonal) {
      const double rest = full || clipped ? of(Row::diagonal_rest, i) : 0;
      return of(Row::diagonal, i) + (full || rest > 0 ? rest : 0);
    }
    return of(k, i);
  }
};

// Calls f(column, the row's coefficients, value or its square) for the block's values.
template <class T, class Index, Source kSource, int kWidth, class Function>
RESCALED_DEVICE void for_terms(const CsrParameters& p, const WalkPlan& plan, Function f) {
  const int64_t batch = block_index() / plan.chunks;
  const SparseRows<T, Index> a(p, batch);
  const Coefficients<Number<T>, kSource> coefficients(p, plan, batch);
  int32_t* const wrong = workspace_at<int32_t>(p, plan.wrong) + batch;
  const bool squared = kSource == Source::diagonal || (kSource == Source::given && plan.squared);
  for_rows(p, plan, [&](int64_t row, int lane) {
    const auto span = a.span(row);
    if constexpr (kSource == Source::diagonal) {
      int32_t* const longest = workspace_at<int32_t>(p, plan.longest) + batch;
      const int32_t length = logarithm(span.end - span.begin);
      if (lane == 0 && load_fresh(longest) < length) raise_to(longest, length);
    }
    double w[kWidth];
    RESCALED_UNROLL for (int k = 0; k < kWidth; ++k) w[k] = k < plan.vectors ? coefficients(k, row) : 0;
    const bool inside = for_values<1>(a, span.begin + lane, span.end, plan.lanes, [&](int64_t column, double value) {
      f(column, w, squared ? value * value : value);
    });
    if (!span.good || !inside) *wrong = 1;
  });
}

template <class T, class Index, Source kSource, int kWidth>
__global__ void __launch_bounds__(kThreads, 4)
    csr_bounds_walk(const __grid_constant__ CsrParameters p, const __grid_constant__ WalkPlan plan) {
  int32_t* const codes = workspace_at<int32_t>(p, plan.codes) + block_index() / plan.chunks * p.columns * kWidth;
  for_terms<T, Index, kSource, kWidth>(p, plan, [&](int64_t column, const double* w, double value) {
    RESCALED_UNROLL for (int k = 0; k < kWidth; ++k) if (k < plan.vectors)
        raise_code(codes + column * kWidth + k, w[k] * value);
  });
}

template <class T, class Index, Source kSource, int kWidth>
__global__ void __launch_bounds__(kThreads, 3)
    csr_add_walk(const __grid_constant__ CsrParameters p, const __grid_constant__ WalkPlan plan) {
  constexpr int kCount = kWidth * kWords<T>;
  RESCALED_SHARED(memory);
  const int64_t base = block_index() / plan.chunks * p.columns * kWidth;
  const int32_t* const codes = workspace_at<int32_t>(p, plan.codes) + base;
  uint64_t* const sums = workspace_at<uint64_t>(p, plan.sums) + base * kWords<T>;
  const Table<kCount> table(memory, plan.slots);
  block_barrier();
  const int bits = bits_of_terms(plan.room);
  for_terms<T, Index, kSource, kWidth>(p, plan, [&](int64_t column, const double* w, double value) {
    const int slot = table.find(column);
    RESCALED_UNROLL for (int k = 0; k < kWidth; ++k) {
      if (k >= plan.vectors) continue;
      const int32_t code = codes[column * kWidth + k];
      if (code == 0 || code >= kPlusInfinity) continue;
      const Term<kWords<T>> term(w[k] * value, code, bits);
      RESCALED_UNROLL for (int part = 0; part < kWords<T>; ++part) {
        const int word = k * kWords<T> + part;
        table.add(slot, word, sums + column * kCount + word, term.word[part]);
      }
    }
  });
  block_barrier();
  table.flush(sums);
}

// Thread by thread a column of a vector.
template <class T, Source kSource>
__global__ void __launch_bounds__(kThreads, 1)
    csr_write(const __grid_constant__ CsrParameters p, const __grid_constant__ WalkPlan plan) {
  using S = Number<T>;
  const int64_t number = int64_t{block_index()} * kThreads + thread_index();
  if (number >= p.batches * p.columns * plan.vectors) return;
  const int64_t batch = number / (p.columns * plan.vectors), k = number / p.columns % plan.vectors,
                j = number % p.columns;
  const int64_t index = (batch * p.columns + j) * width_of(plan.vectors) + k;
  double sum = value_of_sum<kWords<T>>(workspace_at<uint64_t>(p, plan.sums) + index * kWords<T>,
                                       workspace_at<int32_t>(p, plan.codes)[index], bits_of_terms(plan.room));
  if (workspace_at<int32_t>(p, plan.wrong)[batch] != 0) sum = __builtin_nan("");
  if constexpr (kSource == Source::sides) workspace_at<double>(p, plan.sides)[(batch * 3 + k) * p.columns + j] = sum;
  const bool is_vector = kSource == Source::sides || plan.resident;
  const OutputView out = matrix(kSource == Source::sides ? p.gradient : plan.resident ? p.noise : p.sums, p, batch);
  if (is_vector && k > 0) return;
  static_cast<S*>(out.data)[is_vector ? j * out.row : (plan.first + k) * out.row + j * out.column] =
      static_cast<S>(sum);
}

__global__ void __launch_bounds__(kThreads, 1) csr_fill(uint32_t* to, int64_t count) {
  const int64_t i = int64_t{block_index()} * kThreads + thread_index();
  if (i < count) to[i] = 0;
}

// Calls f<kSource, kWidth>() of the types.
template <class Function>
const char* with_source(Source source, int vectors, Function f) {
  using std::integral_constant;
  using One = integral_constant<int, 1>;
  using Most = integral_constant<int, kMostVectors>;
  const auto with = [&](auto which) { return vectors == 1 ? f(which, One()) : f(which, Most()); };
  switch (source) {
    case Source::given:
      return with(integral_constant<Source, Source::given>());
    case Source::sides:
      return f(integral_constant<Source, Source::sides>(), Most());
    default:
      return f(integral_constant<Source, Source::diagonal>(), One());
  }
}

}  // namespace

const char* csr_clear(const CsrParameters& p, int64_t offset, int64_t bytes, void* stream) {
  const int64_t count = bytes / 4;
  return launch(csr_fill, (count + kThreads - 1) / kThreads, kThreads, 0, stream, workspace_at<uint32_t>(p, offset),
                count);
}

const char* csr_bounds(const CsrParameters& p, const WalkPlan& plan, Source source, void* stream) {
  return with_types(p, [&](auto element, auto index) {
    return with_source(source, plan.vectors, [&](auto which, auto width) {
      return launch(csr_bounds_walk<decltype(element), decltype(index), which(), width()>, p.batches * plan.chunks,
                    kThreads, 0, stream, p, plan);
    });
  });
}

const char* csr_sums(const CsrParameters& p, const WalkPlan& given, Source source, void* stream) {
  return with_types(p, [&](auto element, auto index) {
    using T = decltype(element);
    return with_source(source, given.vectors, [&](auto which, auto width) -> const char* {
      if constexpr (which() != Source::diagonal) {
        constexpr int kSlotBytes = Table<width() * kWords<T>>::kSlotBytes;
        WalkPlan plan = given;
        plan.slots =
            slots_of(p.columns, static_cast<double>(p.nonzeros) / static_cast<double>(plan.chunks), kSlotBytes);
        const char* error = launch(csr_add_walk<T, decltype(index), which(), width()>, p.batches * plan.chunks,
                                   kThreads, plan.slots * kSlotBytes, stream, p, plan);
        const int64_t numbers = p.batches * p.columns * plan.vectors;
        return error != nullptr
                   ? error
                   : launch(csr_write<T, which()>, (numbers + kThreads - 1) / kThreads, kThreads, 0, stream, p, plan);
      }
      return nullptr;
    });
  });
}

}  // namespace rescaled
