// SPDX-License-Identifier: BSD-3-Clause
// Loss with gradient, and Hessian products, of a sparse A: one read of it.
#include "csr.h"
#include "pass.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <Vectors kVectors>
inline constexpr bool kIsProduct = kVectors == Vectors::product || kVectors == Vectors::plain_product;

template <Vectors kVectors>
struct CsrPass {
  int vectors, width;  // with the penalty's
  Chunks chunks;
  explicit CsrPass(const CsrParameters& p)
      : vectors(kVectorCount<kVectors> + (p.penalty_weight ? 1 : 0)),
        width(width_of(vectors)),
        chunks(p, row_work(p), most_chunks(p, width * p.columns)) {}
};

// What a chunk leaves, and what is made of the chunks: by what each one's sums are multiplied and recentered.
template <Vectors kVectors>
struct CsrParts {
  Sums *sums, *joined;      // [batches][chunks], [batches]
  double *factors, *moves;  // [batches][chunks]
  double* vectors;          // [batches][chunks][columns][width]
  int64_t chunks, size;
  CsrParts(const CsrParameters& p, Arena& arena) {
    const CsrPass<kVectors> pass(p);
    chunks = pass.chunks.count, size = p.columns * pass.width;
    sums = arena.take<Sums>(p.batches * chunks), joined = arena.take<Sums>(p.batches);
    factors = arena.take<double>(p.batches * chunks), moves = arena.take<double>(p.batches * chunks);
    vectors = arena.take<double>(p.batches * chunks * size);
  }
  double* part(int64_t task) const { return vectors + task * size; }
};

template <class T>
struct CsrScratch {
  RowBlock<T> rows;
  T *x, *v;
  CsrScratch(const CsrParameters& p, Arena& arena) : rows(arena) {
    x = arena.take<T>(p.columns), v = arena.take<T>(p.v ? p.columns : 0);
  }
};

template <Vectors kVectors>
RESCALED_INLINE double factor_of(int i, double factor) {
  return i < kVectorCount<kVectors> ? scaled(1, degree_of<kVectors>(i), factor) : 1;
}

template <class T, Vectors kVectors, class Index>
static void csr_task(const CsrParameters& p, const CsrRows<Index>& a, int64_t batch, int64_t chunk, double* acc,
                     Sums& sums, CsrScratch<T>& s) {
  const CsrPass<kVectors> pass(p);
  const RowInputs in(p, batch);
  for_csr_blocks(p, a, pass.chunks.begin(chunk), pass.chunks.end(p, chunk), [&](int64_t first, int64_t rows) {
    const int64_t padded = round_up(rows, kLanes<T>);
    multiply_csr<T>(a, first, rows, s.x, s.rows.z);
    if (kIsProduct<kVectors>) multiply_csr<T>(a, first, rows, s.v, s.rows.t);
    for (int64_t i = rows; i < padded; ++i)
      s.rows.z[i] = s.rows.z[rows - 1], s.rows.t[i] = kIsProduct<kVectors> ? s.rows.t[rows - 1] : T(0);
    load_targets<T>(in, Block{first, rows, kStreams, 1}, padded, s.rows);
    const double raised = begin_rows<T>(p, rows, padded, s.rows, sums);
    if (raised > 0) {
      double factors[8];
      for (int i = 0; i < pass.width; ++i) factors[i] = factor_of<kVectors>(i, power_of_two(-raised));
      for (int64_t j = 0; j < p.columns; ++j)
        for (int i = 0; i < pass.width; ++i) acc[j * pass.width + i] *= factors[i];
    }
    add_rows<T, kVectors>(p, padded, s.rows, sums);
    scatter_csr<T>(a, first, rows, pass.vectors, s.rows.coefficients, false, acc);
  });
}

template <class T, Vectors kVectors>
static void csr_run(const CsrParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena workspace(p.workspace), arena(memory);
  const CsrParts<kVectors> parts(p, workspace);
  CsrScratch<T> s(p, arena);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / parts.chunks, chunk = task % parts.chunks;
    load_vector<T>(matrix(p.x, p, batch), 0, p.columns, p.columns, s.x);
    if (kIsProduct<kVectors>) load_vector<T>(matrix(p.v, p, batch), 0, p.columns, p.columns, s.v);
    double* const acc = parts.part(task);
    std::memset(acc, 0, sizeof(double) * parts.size);
    Sums& sums = parts.sums[task] = Sums{};
    with_rows(p, batch, [&](auto a) { csr_task<T, kVectors>(p, a, batch, chunk, acc, sums, s); });
  }
}

template <Vectors kVectors>
static void csr_join(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const CsrParts<kVectors> parts(p, workspace);
  for (int64_t batch = begin; batch < end; ++batch) {
    Sums* const of = parts.sums + batch * parts.chunks;
    double exponent = of[0].exponent;
    for (int64_t c = 1; c < parts.chunks; ++c) exponent = of[c].exponent > exponent ? of[c].exponent : exponent;
    for (int64_t c = 0; c < parts.chunks; ++c) {
      parts.factors[batch * parts.chunks + c] = power_of_two(of[c].exponent - exponent);
      rescale(of[c], exponent);
      parts.moves[batch * parts.chunks + c] = of[c].center - of[0].center;
      recenter(of[c], of[0].center);
    }
    Sums& joined = parts.joined[batch] = of[0];
    for (int64_t c = 1; c < parts.chunks; ++c) join_sums(joined, of[c]);
    if (p.statistics) write_statistics(joined, p.form, static_cast<double*>(matrix(p.statistics, p, batch).data));
  }
}

template <Vectors kVectors>
static void csr_finish(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  constexpr int count = kVectorCount<kVectors>;
  Arena workspace(p.workspace);
  const CsrParts<kVectors> parts(p, workspace);
  const int width = CsrPass<kVectors>(p).width;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / column_blocks(p), first = task % column_blocks(p) * kJoinColumns,
                  last = first + kJoinColumns < p.columns ? first + kJoinColumns : p.columns;
    const Sums& sums = parts.joined[batch];
    const Totals t = totals_of(sums, p.form);
    const double penalty = p.penalty_weight ? unscaled_factor(sums, p.form) : 0;
    const OutputView vector = matrix(p.vector, p, batch);
    for (int64_t j = first; j < last; ++j) {
      double h[8] = {};
      for (int64_t c = 0; c < parts.chunks; ++c) {
        const int64_t chunk = batch * parts.chunks + c;
        const double* const from = parts.part(chunk) + j * width;
        double part[8] = {};
        for (int i = 0; i < width; ++i) part[i] = from[i] * factor_of<kVectors>(i, parts.factors[chunk]);
        for (int i = 0; i < count; ++i)
          if (const int other = target_of<kVectors>(i); other >= 0) part[i] += parts.moves[chunk] * part[other];
        for (int i = 0; i < width; ++i) h[i] += part[i];
      }
      double value = h[0];
      if constexpr (kVectors == Vectors::gradient) value = gradient_at(t, h[0], h[1], h[2]);
      if constexpr (kVectors == Vectors::product) value = product_at(p, sums, t, {h[0], h[1], h[2], h[3], h[4], h[5]});
      static_cast<double*>(vector.data)[j * vector.row] = p.penalty_weight ? value + penalty * h[count] : value;
    }
  }
}

template <Vectors kVectors>
static CsrProgram csr_program(const CsrParameters& p) {
  const bool wide = p.A.dtype == DType::float64;
  return {{{p.batches * CsrPass<kVectors>(p).chunks.count,
            wide ? bytes_of<CsrScratch<double>>(p) : bytes_of<CsrScratch<float>>(p),
            wide ? csr_run<double, kVectors> : csr_run<float, kVectors>},
           {p.batches, 0, csr_join<kVectors>},
           {p.batches * column_blocks(p), 0, csr_finish<kVectors>}},
          3,
          bytes_of<CsrParts<kVectors>>(p)};
}

}  // namespace

CsrProgram csr_evaluate(const CsrParameters& p) {
  return p.form == Form::plain ? csr_program<Vectors::plain_gradient>(p) : csr_program<Vectors::gradient>(p);
}
CsrProgram csr_product(const CsrParameters& p) {
  return p.form == Form::plain ? csr_program<Vectors::plain_product>(p) : csr_program<Vectors::product>(p);
}

}  // namespace rescaled::RESCALED_ISA
