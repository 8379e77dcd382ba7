// SPDX-License-Identifier: BSD-3-Clause
// Of a sparse A: A v, A^T times vectors, and gradient, Hessian and rounding errors from the vectors of a point, pair by
// pair of a row's values.
#include "csr.h"
#include "pass.h"

namespace rescaled::RESCALED_ISA {

CsrProgram csr_dense_curvature(const CsrParameters& p);

namespace {

RESCALED_INLINE Chunks matvec_chunks(const CsrParameters& p) { return Chunks(p, row_work(p)); }

template <class T>
static void csr_matvec_run(const CsrParameters& p, int64_t begin, int64_t end, void* memory) {
  const Chunks chunks = matvec_chunks(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / chunks.count, chunk = task % chunks.count;
    const OutputView out = matrix(p.products, p, batch);
    const T* const v = column_vector<T>(matrix(p.v, p, batch), p.columns, static_cast<T*>(memory));
    T products[kMostRows];
    with_rows(p, batch, [&](const auto& a) {
      for_csr_blocks(a, chunks.begin(chunk), chunks.end(p, chunk), [&](int64_t first, int64_t count) {
        if (!multiply_csr<T>(p, a, first, count, Visit::unchecked, v, products)) return;
        for (int64_t i = 0; i < count; ++i) static_cast<T*>(out.data)[(first + i) * out.row] = products[i];
      });
    });
  }
}

constexpr int kMostVectors = 4;  // of a pass over A
struct TransposedParts {
  double* sums;  // [batches][groups][chunks][columns][width]
  Chunks chunks;
  int64_t groups, size;
  static int width(const CsrParameters& p) {
    return width_of(static_cast<int>(smaller(p.weights_count, kMostVectors)));
  }
  TransposedParts(const CsrParameters& p, Arena& arena)
      : chunks(p, row_work(p), most_chunks(p, width(p) * p.columns)),
        groups((p.weights_count + kMostVectors - 1) / kMostVectors),
        size(p.columns * width(p)) {
    sums = arena.take<double>(p.batches * groups * chunks.count * size);
  }
};

template <class T>
static void transposed_run(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const TransposedParts parts(p, workspace);
  T coefficients[kMostVectors * kMostRows];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t chunk = task % parts.chunks.count, group = task / parts.chunks.count % parts.groups,
                  batch = task / parts.chunks.count / parts.groups, from = group * kMostVectors,
                  count = smaller(p.weights_count - from, kMostVectors);
    const InputView weights = matrix(p.weights, p, batch);
    double* const acc = parts.sums + task * parts.size;
    std::memset(acc, 0, sizeof(double) * parts.size);
    with_rows(p, batch, [&](const auto& a) {
      for_csr_blocks(a, parts.chunks.begin(chunk), parts.chunks.end(p, chunk), [&](int64_t first, int64_t rows) {
        for (int64_t i = 0; i < count; ++i) {
          InputView row = from_row(weights, from + i);
          row.row = weights.column;
          load_vector<T>(row, first, rows, rows, coefficients + i * kMostRows);
        }
        switch (TransposedParts::width(p)) {
          case 1:
            scatter_csr<T, 1>(p, a, first, rows, Visit::unchecked, 1, coefficients, p.squared, acc);
            break;
          case 2:
            scatter_csr<T, 2>(p, a, first, rows, Visit::unchecked, 2, coefficients, p.squared, acc);
            break;
          default:
            scatter_csr<T, 4>(p, a, first, rows, Visit::unchecked, static_cast<int>(count), coefficients, p.squared,
                              acc);
        }
      });
    });
  }
}

template <class T>
static void transposed_finish(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const TransposedParts parts(p, workspace);
  const int64_t blocks = column_blocks(p), width = TransposedParts::width(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / blocks, first = task % blocks * kJoinColumns,
                  last = first + kJoinColumns < p.columns ? first + kJoinColumns : p.columns;
    const OutputView out = matrix(p.sums, p, batch);
    for (int64_t k = 0; k < p.weights_count; ++k) {
      const double* const from =
          parts.sums + (batch * parts.groups + k / kMostVectors) * parts.chunks.count * parts.size;
      for (int64_t j = first; j < last; ++j) {
        double sum = 0;
        for (int64_t c = 0; c < parts.chunks.count; ++c) sum += from[c * parts.size + j * width + k % kMostVectors];
        static_cast<T*>(out.data)[k * out.row + j * out.column] = static_cast<T>(sum);
      }
    }
  }
}

// Gradient, p, q beside each other, and the noise.
struct CsrGramParts {
  double *gram, *sides, *noise;  // [batches][chunks] of [columns][columns], [columns][4], [columns]
  Chunks chunks;
  CsrGramParts(const CsrParameters& p, Arena& arena)
      : chunks(p, row_work(p) * row_work(p),
               smaller(16, p.nonzeros * row_work(p) / (8 * p.columns * p.columns + 1) + 1)) {
    gram = arena.take<double>(p.batches * chunks.count * p.columns * p.columns);
    sides = arena.take<double>(p.batches * chunks.count * p.columns * 4);
    noise = arena.take<double>(p.batches * chunks.count * p.columns);
  }
};

// The lower triangle of A^T diag(D) A, of rows whose columns may come in any order, and more than once.
template <class T, class Index>
static void add_pairs(const CsrRows<Index>& a, int64_t first, int64_t count, int64_t columns, const T* diagonal,
                      double* gram) {
  with_values<T>(a.dtype, a.values, [&](auto* values) {
    for (int64_t r = 0; r < count; ++r) {
      const int64_t begin = a.crow[first + r], end = a.crow[first + r + 1];
      for (int64_t k = begin; k < end; ++k) {
        const int64_t i = a.col[k];
        const double weight = double{diagonal[r]} * static_cast<double>(value_of(values[k]));
        for (int64_t l = begin; l <= k; ++l) {
          const int64_t j = a.col[l];
          const double part = weight * static_cast<double>(value_of(values[l]));
          gram[i > j ? i * columns + j : j * columns + i] += i == j && k != l ? 2 * part : part;
        }
      }
    }
  });
}

template <class T>
static void csr_gram_run(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  using Row = RegressionRows;
  Arena workspace(p.workspace);
  const CsrGramParts parts(p, workspace);
  const bool full = p.curvature == Curvature::full, clipped = p.curvature == Curvature::clipped;
  T sides[3 * kMostRows], diagonal[kMostRows], rest[kMostRows];
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / parts.chunks.count, chunk = task % parts.chunks.count;
    const InputView rows = matrix(p.resident_rows, p, batch);
    double* const gram = parts.gram + task * p.columns * p.columns;
    std::memset(gram, 0, sizeof(double) * p.columns * p.columns);
    std::memset(parts.sides + task * p.columns * 4, 0, sizeof(double) * p.columns * 4);
    std::memset(parts.noise + task * p.columns, 0, sizeof(double) * p.columns);
    with_rows(p, batch, [&](const auto& a) {
      for_csr_blocks(a, parts.chunks.begin(chunk), parts.chunks.end(p, chunk), [&](int64_t first, int64_t count) {
        if (!remember(p, is_inside(p, a, first, first + count))) return;
        const auto vector = [&](int64_t k, T* to) {
          std::memcpy(to, static_cast<const T*>(rows.data) + k * rows.row + first, sizeof(T) * count);
        };
        vector(Row::gradient, sides), vector(Row::p, sides + kMostRows), vector(Row::q, sides + 2 * kMostRows);
        vector(Row::diagonal, diagonal), vector(Row::diagonal_rest, rest);
        for (int64_t i = 0; (full || clipped) && i < count; ++i)
          if (full || rest[i] > 0) diagonal[i] += rest[i];
        vector(Row::q_rest, rest);
        for (int64_t i = 0; full && i < count; ++i) sides[2 * kMostRows + i] += rest[i];
        add_pairs<T>(a, first, count, p.columns, diagonal, gram);
        scatter_csr<T, 4>(p, a, first, count, Visit::again, 3, sides, false, parts.sides + task * p.columns * 4);
        vector(Row::noise, rest);
        scatter_csr<T, 1>(p, a, first, count, Visit::again, 1, rest, true, parts.noise + task * p.columns);
      });
    });
  }
}

// Sums the chunks' sides into the first's.
template <class T>
static void csr_sides_finish(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const CsrGramParts parts(p, workspace);
  const int64_t chunks = parts.chunks.count, size = p.columns * 4;
  for (int64_t batch = begin; batch < end; ++batch) {
    double *const sides = parts.sides + batch * chunks * size, *const noise = parts.noise + batch * chunks * p.columns;
    for (int64_t c = 1; c < chunks; ++c) {
      for (int64_t i = 0; i < size; ++i) sides[i] += sides[c * size + i];
      for (int64_t i = 0; i < p.columns; ++i) noise[i] += noise[c * p.columns + i];
    }
    const OutputView gradient = matrix(p.gradient, p, batch), errors = matrix(p.noise, p, batch);
    for (int64_t j = 0; j < p.columns; ++j) {
      static_cast<T*>(gradient.data)[j * gradient.row] = static_cast<T>(sides[j * 4]);
      static_cast<T*>(errors.data)[j * errors.row] = static_cast<T>(noise[j]);
    }
  }
}

template <class T>
static void csr_hessian_finish(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const CsrGramParts parts(p, workspace);
  const int64_t chunks = parts.chunks.count, size = p.columns * p.columns;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / p.columns, i = task % p.columns;
    const double* const gram = parts.gram + batch * chunks * size + i * p.columns;
    const double* const sides = parts.sides + batch * chunks * p.columns * 4;
    const double square =
        static_cast<const double*>(matrix(p.saved_statistics, p, batch).data)[RegressionStatistics::square];
    const OutputView hessian = matrix(p.hessian, p, batch);
    T* const to = static_cast<T*>(hessian.data);
    const double p_i = sides[i * 4 + 1], q_i = sides[i * 4 + 2];
    for (int64_t j = 0; j <= i; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < chunks; ++c) sum += gram[c * size + j];
      const double p_j = sides[j * 4 + 1], q_j = sides[j * 4 + 2];
      sum += square * p_i * p_j - p_i * q_j - q_i * p_j;
      to[i * hessian.row + j * hessian.column] = to[j * hessian.row + i * hessian.column] = static_cast<T>(sum);
    }
  }
}

// Tiles take a column pair of a row about 32 times as fast as pairs of values do, and all of them.
RESCALED_INLINE bool is_nearly_dense(const CsrParameters& p) {
  const double values = static_cast<double>(row_work(p)), columns = static_cast<double>(p.columns);
  return 32 * values * values > columns * columns;
}

}  // namespace

CsrProgram csr_matvec(const CsrParameters& p) {
  const bool wide = p.A.dtype == DType::float64;
  return {{{p.batches * matvec_chunks(p).count, p.columns * int64_t{wide ? 8 : 4},
            wide ? csr_matvec_run<double> : csr_matvec_run<float>}},
          1,
          0};
}
CsrProgram csr_transposed(const CsrParameters& p) {
  const bool wide = p.A.dtype == DType::float64;
  Arena arena(nullptr);
  const TransposedParts parts(p, arena);
  return {{{p.batches * parts.groups * parts.chunks.count, 0, wide ? transposed_run<double> : transposed_run<float>},
           {p.batches * column_blocks(p), 0, wide ? transposed_finish<double> : transposed_finish<float>}},
          2,
          arena.used()};
}
CsrProgram csr_curvature(const CsrParameters& p) {
  if (is_nearly_dense(p)) return csr_dense_curvature(p);
  const bool wide = p.A.dtype == DType::float64;
  Arena arena(nullptr);
  const CsrGramParts parts(p, arena);
  return {{{p.batches * parts.chunks.count, 0, wide ? csr_gram_run<double> : csr_gram_run<float>},
           {p.batches, 0, wide ? csr_sides_finish<double> : csr_sides_finish<float>},
           {p.batches * p.columns, 0, wide ? csr_hessian_finish<double> : csr_hessian_finish<float>}},
          3,
          arena.used()};
}

}  // namespace rescaled::RESCALED_ISA
