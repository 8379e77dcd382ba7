// SPDX-License-Identifier: BSD-3-Clause
// Loss with gradient, and Hessian products, of a sparse A. With few columns in one read of it, which adds up several
// vectors because what they are multiplied by is a sum over all rows. Several numbers a column beyond the first-level
// cache take longer than a second read does (1.5 to 2 times, measured at 10000 columns): there the logits stay, and the
// second read adds up the result alone.
#include "csr.h"
#include "pass.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <Vectors kVectors>
inline constexpr bool kIsProduct = kVectors == Vectors::product || kVectors == Vectors::plain_product;

// The shape of a pass: what is added up, by which chunks of rows.
template <Vectors kVectors>
struct CsrPass {
  int vectors, width;  // with the penalty's
  bool two_reads;
  Chunks chunks;
  explicit CsrPass(const CsrParameters& p)
      : vectors(kVectorCount<kVectors> + (p.penalty_weight ? 1 : 0)),
        width(width_of(vectors)),
        two_reads(vectors > 1 && width * p.columns > kFewNumbers),
        chunks(p, row_work(p), most_chunks(p, (two_reads ? 1 : width) * p.columns)) {}
  static constexpr int64_t kFewNumbers = 4096;  // 32 KB
};

// What a chunk leaves, and what is made of the chunks: by what each one's sums are multiplied and recentered.
template <class T, Vectors kVectors>
struct CsrParts {
  Sums *sums, *joined;      // [batches][chunks], [batches]
  double *factors, *moves;  // [batches][chunks]
  double* vectors;          // [batches][chunks][columns][width], with two reads of width 1
  T *logits, *turned;       // [batches][n], of two reads: A x, A v
  int64_t chunks, size;
  CsrParts(const CsrParameters& p, Arena& arena) {
    const CsrPass<kVectors> pass(p);
    chunks = pass.chunks.count, size = p.columns * (pass.two_reads ? 1 : pass.width);
    sums = arena.take<Sums>(p.batches * chunks), joined = arena.take<Sums>(p.batches);
    factors = arena.take<double>(p.batches * chunks), moves = arena.take<double>(p.batches * chunks);
    vectors = arena.take<double>(p.batches * chunks * size);
    logits = arena.take<T>(pass.two_reads ? p.batches * p.rows : 0);
    turned = arena.take<T>(pass.two_reads && p.v ? p.batches * p.rows : 0);
  }
  double* part(int64_t task) const { return vectors + task * size; }
};

template <class T>
struct CsrScratch {
  RowBlock<T> rows;
  T *x, *v;
  const T *x_at, *v_at;
  CsrScratch(const CsrParameters& p, Arena& arena) : rows(arena) {
    x = arena.take<T>(p.columns), v = arena.take<T>(p.v ? p.columns : 0);
  }
  void load_vectors(const CsrParameters& p, int64_t batch) {
    x_at = column_vector<T>(matrix(p.x, p, batch), p.columns, x);
    if (p.v) v_at = column_vector<T>(matrix(p.v, p, batch), p.columns, v);
  }
  void pad(int64_t count, int64_t padded) {
    for (int64_t i = count; i < padded; ++i) rows.z[i] = rows.z[count - 1], rows.t[i] = rows.t[count - 1];
  }
};

template <Vectors kVectors>
RESCALED_INLINE double factor_of(int i, double factor) {
  return i < kVectorCount<kVectors> ? scaled(1, degree_of<kVectors>(i), factor) : 1;
}

// The result from the vectors' sums, or a row's coefficient of it from the row's.
template <Vectors kVectors>
RESCALED_INLINE double result_of(const CsrParameters& p, const Sums& sums, const Totals& t, const double (&h)[8]) {
  if constexpr (kVectors == Vectors::gradient) return gradient_at(t, h[0], h[1], h[2]);
  if constexpr (kVectors == Vectors::product) return product_at(p, sums, t, {h[0], h[1], h[2], h[3], h[4], h[5]});
  return h[0];
}

// u, sums and coefficients of rows whose logits are there. Returns by what the exponent was raised.
template <class T, Vectors kVectors>
static double add_loaded_rows(const CsrParameters& p, const RowInputs& in, int64_t first, int64_t rows, Sums& sums,
                              CsrScratch<T>& s) {
  const int64_t padded = round_up(rows, kLanes<T>);
  s.pad(rows, padded);
  load_targets<T>(in, Block{first, rows, kStreams, 1}, padded, s.rows);
  const double raised = begin_rows<T>(p, rows, padded, s.rows, sums);
  add_rows<T, kVectors>(p, padded, s.rows, sums);
  return raised;
}

// The same with the logits, or -1 where an index is wrong.
template <class T, Vectors kVectors, class Index>
RESCALED_INLINE double load_csr_rows(const CsrParameters& p, const RowInputs& in, const CsrRows<Index>& a,
                                     int64_t first, int64_t rows, Sums& sums, CsrScratch<T>& s) {
  if (!multiply_csr<T>(p, a, first, rows, Visit::unchecked, s.x_at, s.rows.z)) return -1;
  if (kIsProduct<kVectors>) multiply_csr<T>(p, a, first, rows, Visit::again, s.v_at, s.rows.t);
  return add_loaded_rows<T, kVectors>(p, in, first, rows, sums, s);
}

template <class T, Vectors kVectors, class Index>
static void csr_task(const CsrParameters& p, const CsrRows<Index>& a, int64_t batch, int64_t chunk, double* acc,
                     Sums& sums, CsrScratch<T>& s) {
  const CsrPass<kVectors> pass(p);
  const RowInputs in(p, batch);
  for_csr_blocks(a, pass.chunks.begin(chunk), pass.chunks.end(p, chunk), [&](int64_t first, int64_t rows) {
    const double raised = load_csr_rows<T, kVectors>(p, in, a, first, rows, sums, s);
    if (raised < 0) return;
    if (raised > 0) {
      double factors[8];
      for (int i = 0; i < pass.width; ++i) factors[i] = factor_of<kVectors>(i, power_of_two(-raised));
      for (int64_t j = 0; j < p.columns; ++j)
        for (int i = 0; i < pass.width; ++i) acc[j * pass.width + i] *= factors[i];
    }
    scatter_csr<T>(p, a, first, rows, Visit::again, pass.vectors, s.rows.coefficients, false, acc);
  });
}

// The first of two reads: logits and sums.
template <class T, Vectors kVectors, class Index>
static void csr_logits(const CsrParameters& p, const CsrRows<Index>& a, int64_t batch, int64_t chunk,
                       const CsrParts<T, kVectors>& parts, Sums& sums, CsrScratch<T>& s) {
  const CsrPass<kVectors> pass(p);
  const RowInputs in(p, batch);
  for_csr_blocks(a, pass.chunks.begin(chunk), pass.chunks.end(p, chunk), [&](int64_t first, int64_t rows) {
    if (load_csr_rows<T, kVectors>(p, in, a, first, rows, sums, s) < 0) return;
    std::memcpy(parts.logits + batch * p.rows + first, s.rows.z, sizeof(T) * rows);
    if (kIsProduct<kVectors>) std::memcpy(parts.turned + batch * p.rows + first, s.rows.t, sizeof(T) * rows);
  });
}

// The second.
template <class T, Vectors kVectors, class Index>
static void csr_result(const CsrParameters& p, const CsrRows<Index>& a, int64_t batch, int64_t chunk,
                       const CsrParts<T, kVectors>& parts, double* acc, CsrScratch<T>& s) {
  constexpr int count = kVectorCount<kVectors>;
  const CsrPass<kVectors> pass(p);
  const RowInputs in(p, batch);
  const Sums& joined = parts.joined[batch];
  const Totals t = totals_of(joined, p.form);
  const double penalty = p.penalty_weight ? unscaled_factor(joined, p.form) : 0;
  for_csr_blocks(a, pass.chunks.begin(chunk), pass.chunks.end(p, chunk), [&](int64_t first, int64_t rows) {
    const int64_t padded = round_up(rows, kLanes<T>);
    std::memcpy(s.rows.z, parts.logits + batch * p.rows + first, sizeof(T) * rows);
    if (kIsProduct<kVectors>) std::memcpy(s.rows.t, parts.turned + batch * p.rows + first, sizeof(T) * rows);
    s.pad(rows, padded);
    load_targets<T>(in, Block{first, rows, kStreams, 1}, padded, s.rows);
    if (p.kind == Kind::exp)
      fill_phi<T, false>(p.kind, joined.exponent, rows, padded, s.rows);
    else
      fill_phi<T, true>(p.kind, joined.exponent, rows, padded, s.rows);
    Sums again = joined;
    add_rows<T, kVectors>(p, padded, s.rows, again);
    for (int64_t r = 0; r < rows; ++r) {
      double h[8] = {};
      RESCALED_UNROLL for (int i = 0; i < count; ++i) h[i] = double{s.rows.coefficient(i)[r]};
      double c = result_of<kVectors>(p, joined, t, h);
      if (p.penalty_weight) c += penalty * double{s.rows.coefficient(count)[r]};
      s.rows.coefficient(0)[r] = static_cast<T>(c);
    }
    scatter_csr<T, 1>(p, a, first, rows, Visit::first, 1, s.rows.coefficients, false, acc);
  });
}

template <class T, Vectors kVectors>
static void csr_run(const CsrParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena workspace(p.workspace), arena(memory);
  const CsrParts<T, kVectors> parts(p, workspace);
  const bool two_reads = CsrPass<kVectors>(p).two_reads;
  CsrScratch<T> s(p, arena);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / parts.chunks, chunk = task % parts.chunks;
    s.load_vectors(p, batch);
    Sums& sums = parts.sums[task] = Sums{};
    double* const acc = parts.part(task);
    if (!two_reads) std::memset(acc, 0, sizeof(double) * parts.size);
    with_rows(p, batch, [&](auto a) {
      if (two_reads)
        csr_logits<T, kVectors>(p, a, batch, chunk, parts, sums, s);
      else
        csr_task<T, kVectors>(p, a, batch, chunk, acc, sums, s);
    });
  }
}
template <class T, Vectors kVectors>
static void csr_second_run(const CsrParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena workspace(p.workspace), arena(memory);
  const CsrParts<T, kVectors> parts(p, workspace);
  CsrScratch<T> s(p, arena);
  if (__atomic_load_n(p.wrong, __ATOMIC_RELAXED) != 0) return;
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / parts.chunks, chunk = task % parts.chunks;
    double* const acc = parts.part(task);
    std::memset(acc, 0, sizeof(double) * parts.size);
    with_rows(p, batch, [&](auto a) { csr_result<T, kVectors>(p, a, batch, chunk, parts, acc, s); });
  }
}

template <class T, Vectors kVectors>
static void csr_join(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const CsrParts<T, kVectors> parts(p, workspace);
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

template <class T, Vectors kVectors>
static void csr_finish(const CsrParameters& p, int64_t begin, int64_t end, void*) {
  constexpr int count = kVectorCount<kVectors>;
  Arena workspace(p.workspace);
  const CsrParts<T, kVectors> parts(p, workspace);
  const CsrPass<kVectors> pass(p);
  const int width = pass.two_reads ? 1 : pass.width;
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
        if (pass.two_reads) {
          h[0] += from[0];
          continue;
        }
        double part[8] = {};
        for (int i = 0; i < width; ++i) part[i] = from[i] * factor_of<kVectors>(i, parts.factors[chunk]);
        for (int i = 0; i < count; ++i)
          if (const int other = target_of<kVectors>(i); other >= 0) part[i] += parts.moves[chunk] * part[other];
        for (int i = 0; i < width; ++i) h[i] += part[i];
      }
      double value = pass.two_reads ? h[0] : result_of<kVectors>(p, sums, t, h);
      if (p.penalty_weight && !pass.two_reads) value += penalty * h[count];
      static_cast<double*>(vector.data)[j * vector.row] = value;
    }
  }
}

template <class T, Vectors kVectors>
static CsrProgram csr_program(const CsrParameters& p) {
  const CsrPass<kVectors> pass(p);
  const int64_t tasks = p.batches * pass.chunks.count, scratch = bytes_of<CsrScratch<T>>(p);
  return {{{tasks, scratch, csr_run<T, kVectors>},
           {p.batches, 0, csr_join<T, kVectors>},
           {pass.two_reads ? tasks : 0, scratch, csr_second_run<T, kVectors>},
           {p.batches * column_blocks(p), 0, csr_finish<T, kVectors>}},
          4,
          bytes_of<CsrParts<T, kVectors>>(p)};
}
template <Vectors kVectors>
static CsrProgram csr_program(const CsrParameters& p) {
  return p.A.dtype == DType::float64 ? csr_program<double, kVectors>(p) : csr_program<float, kVectors>(p);
}

}  // namespace

CsrProgram csr_evaluate(const CsrParameters& p) {
  return p.form == Form::plain ? csr_program<Vectors::plain_gradient>(p) : csr_program<Vectors::gradient>(p);
}
CsrProgram csr_product(const CsrParameters& p) {
  return p.form == Form::plain ? csr_program<Vectors::plain_product>(p) : csr_program<Vectors::product>(p);
}

}  // namespace rescaled::RESCALED_ISA
