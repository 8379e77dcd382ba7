// SPDX-License-Identifier: BSD-3-Clause
// A^T W in one read of A: sums of rows, four vectors at a time while a block is in the cache.
#include "pass.h"

namespace rescaled::RESCALED_ISA {
namespace {

constexpr int64_t kFlushBlocks = 16;  // blocks after which sums in T are added to those in double

struct TransposedParts {
  double* sums;  // [batches][chunks][steps_count][columns]
  TransposedParts(const RegressionParameters& p, Arena& arena)
      : sums(arena.take<double>(p.batches * Chunks(p, p.columns).count * p.steps_count * p.columns)) {}
};

template <class T, bool kSquared>
struct TransposedScratch {
  T *packed, *coefficients, *sums;
  int64_t ld;
  TransposedScratch(const RegressionParameters& p, Arena& arena) : ld(round_up(p.columns, kLanes<T>)) {
    const bool packs = kSquared || !reads_in_place<T>(p);
    packed = arena.take<T>(packs ? block_rows<T>(p) * p.columns : 0);
    coefficients = arena.take<T>(p.steps_count * kMostRows), sums = arena.take<T>(p.steps_count * ld);
  }
};

template <class T>
static void add_vectors(BlockRows<T> a, int64_t rows, int64_t columns, int64_t count, const T* coefficients, T* sums,
                        int64_t ld) {
  for (; count > 0; count -= 4, coefficients += 4 * kMostRows, sums += 4 * ld) switch (count) {
      case 1:
        add_weighted_rows<T, 1>(a, rows, columns, coefficients, sums, ld);
        break;
      case 2:
        add_weighted_rows<T, 2>(a, rows, columns, coefficients, sums, ld);
        break;
      case 3:
        add_weighted_rows<T, 3>(a, rows, columns, coefficients, sums, ld);
        break;
      default:
        add_weighted_rows<T, 4>(a, rows, columns, coefficients, sums, ld);
    }
}

template <class T, bool kSquared>
static void transposed_run(const RegressionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena workspace(p.workspace), arena(memory);
  const TransposedParts parts(p, workspace);
  TransposedScratch<T, kSquared> s(p, arena);
  const Chunks chunks(p, p.columns);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / chunks.count, chunk = task % chunks.count;
    const InputView A = matrix(p.A, p, batch), weights = matrix(p.resident_rows, p, batch);
    double* const sums = parts.sums + task * p.steps_count * p.columns;
    std::memset(sums, 0, sizeof(double) * p.steps_count * p.columns);
    std::memset(s.sums, 0, sizeof(T) * p.steps_count * s.ld);
    const auto flush = [&] {
      for (int64_t k = 0; k < p.steps_count; ++k)
        for (int64_t j = 0; j < p.columns; ++j) sums[k * p.columns + j] += double{s.sums[k * s.ld + j]};
      std::memset(s.sums, 0, sizeof(T) * p.steps_count * s.ld);
    };
    int64_t blocks = 0;
    for_blocks(chunks.begin(chunk), chunks.end(p, chunk), block_rows<T>(p), [&](Block block) {
      BlockRows<T> a{s.packed, kStreams * p.columns, p.columns};
      if constexpr (kSquared) {
        pack_block<T>(A, block, p.columns, p.columns, s.packed);
        for (int64_t i = 0; i < block.count * p.columns; ++i) s.packed[i] *= s.packed[i];
      } else {
        a = block_of<T>(p, A, block, s.packed);
      }
      for (int64_t k = 0; k < p.steps_count; ++k) {
        const InputView from{static_cast<const T*>(weights.data) + k * weights.row, weights.dtype, weights.column, 0};
        load_rows<T>(from, block, block.count, s.coefficients + k * kMostRows);
      }
      add_vectors<T>(a, block.count, p.columns, p.steps_count, s.coefficients, s.sums, s.ld);
      if (++blocks % kFlushBlocks == 0) flush();
    });
    flush();
  }
}

template <class T>
static void transposed_finish(const RegressionParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const TransposedParts parts(p, workspace);
  const int64_t chunks = Chunks(p, p.columns).count, size = p.steps_count * p.columns;
  for (int64_t batch = begin; batch < end; ++batch) {
    double* const sums = parts.sums + batch * chunks * size;
    for (int64_t chunk = 1; chunk < chunks; ++chunk)
      for (int64_t i = 0; i < size; ++i) sums[i] += sums[chunk * size + i];
    const OutputView out = matrix(p.vector, p, batch);
    for (int64_t k = 0; k < p.steps_count; ++k)
      for (int64_t j = 0; j < p.columns; ++j)
        static_cast<T*>(out.data)[k * out.row + j * out.column] = static_cast<T>(sums[k * p.columns + j]);
  }
}

template <class T, bool kSquared>
static RegressionProgram transposed_program(const RegressionParameters& p) {
  const int64_t tasks = p.batches * Chunks(p, p.columns).count;
  return {{{tasks, bytes_of<TransposedScratch<T, kSquared>>(p), transposed_run<T, kSquared>},
           {p.batches, 0, transposed_finish<T>}},
          2,
          bytes_of<TransposedParts>(p)};
}

}  // namespace

RegressionProgram regression_transposed(const RegressionParameters& p, bool squared) {
  if (p.A.dtype == DType::float64)
    return squared ? transposed_program<double, true>(p) : transposed_program<double, false>(p);
  return squared ? transposed_program<float, true>(p) : transposed_program<float, false>(p);
}

}  // namespace rescaled::RESCALED_ISA
