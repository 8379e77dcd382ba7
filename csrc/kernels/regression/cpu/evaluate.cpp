// SPDX-License-Identifier: BSD-3-Clause
// Loss with gradient (and Gauss-Newton's Hessian), and Hessian products, from A, b and x alone: one read of A.
#include "gram.h"
#include "sum_parts.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Rows after which the vectors, summed in T, are added to those in double.
constexpr int64_t kFlushRows = 2048;

template <Vectors kVectors>
inline constexpr bool kIsProduct = kVectors == Vectors::product || kVectors == Vectors::plain_product;

template <Vectors kVectors>
inline constexpr bool kWithGram = kVectors == Vectors::gauss_newton;

template <Vectors kVectors>
RESCALED_INLINE Chunks chunks_of(const RegressionParameters& p) {
  // A chunk costs a copy of the triangle: it should have several times as many rows as columns.
  return kWithGram<kVectors> ? Chunks(p, p.columns, 16, 4 * p.columns + 1024) : Chunks(p, p.columns);
}

template <Vectors kVectors>
RESCALED_INLINE int vector_count(const RegressionParameters& p) {
  return kVectorCount<kVectors> + (p.penalty_weight ? 1 : 0);
}

// What a chunk leaves: its sums, and its vectors.
template <class T, Vectors kVectors>
struct Parts {
  Sums* sums;       // [batches][chunks]
  double* vectors;  // [batches][chunks][vector_count][columns]
  double* grams;    // [batches][chunks][triangle]
  int64_t chunks, count, columns, triangle;
  Parts(const RegressionParameters& p, Arena& arena)
      : chunks(chunks_of<kVectors>(p).count), count(vector_count<kVectors>(p)), columns(p.columns) {
    triangle = kWithGram<kVectors> ? Triangle<T>(p.columns).size() : 0;
    sums = arena.take<Sums>(p.batches * chunks);
    vectors = arena.take<double>(p.batches * chunks * count * columns);
    grams = arena.take<double>(p.batches * chunks * triangle);
  }
  double* gram(int64_t batch, int64_t chunk) const { return grams + (batch * chunks + chunk) * triangle; }
  Sums& sums_of(int64_t batch, int64_t chunk) const { return sums[batch * chunks + chunk]; }
  double* vector(int64_t batch, int64_t chunk, int64_t i) const {
    return vectors + ((batch * chunks + chunk) * count + i) * columns;
  }
};

template <class T, Vectors kVectors>
struct PassScratch {
  RowBlock<T> rows;
  T *x, *v, *packed, *acc;
  T *rows_of_gram, *panel, *gram;
  int64_t ld;
  PassScratch(const RegressionParameters& p, Arena& arena) : rows(arena), ld(round_up(p.columns, kLanes<T>)) {
    x = arena.take<T>(ld), v = arena.take<T>(ld);
    packed = arena.take<T>(reads_in_place<T>(p) ? 0 : block_rows<T>(p) * p.columns);
    acc = arena.take<T>(vector_count<kVectors>(p) * ld);
    const Triangle<T> triangle(p.columns);
    rows_of_gram = arena.take<T>(kWithGram<kVectors> ? kGramRows * triangle.padded : 0);
    panel = arena.take<T>(kWithGram<kVectors> ? kGramRows * kPanelLanes<T> : 0);
    gram = arena.take<T>(kWithGram<kVectors> ? triangle.size() : 0);
  }
};

// Vector i is scaled by this degree; the one after the vectors is the penalty's.
template <Vectors kVectors>
RESCALED_INLINE Degree degree_at(int i) {
  return i < kVectorCount<kVectors> ? degree_of<kVectors>(i) : Degree::none;
}

template <class T, Vectors kVectors>
static void flush(const Parts<T, kVectors>& parts, PassScratch<T, kVectors>& s, int64_t batch, int64_t chunk) {
  for (int64_t i = 0; i < parts.count; ++i) {
    double* to = parts.vector(batch, chunk, i);
    for (int64_t j = 0; j < parts.columns; ++j) to[j] += double{s.acc[i * s.ld + j]};
  }
  std::memset(s.acc, 0, sizeof(T) * parts.count * s.ld);
  double* const gram = parts.gram(batch, chunk);
  for (int64_t i = 0; i < parts.triangle; ++i) gram[i] += double{s.gram[i]};
  std::memset(s.gram, 0, sizeof(T) * parts.triangle);
}

// The block's part of the Gram, with the coefficients that follow the vectors'.
template <class T, Vectors kVectors>
static void add_gram(const RegressionParameters& p, BlockRows<T> a, int64_t rows, PassScratch<T, kVectors>& s) {
  const Triangle<T> triangle(p.columns);
  for (int64_t first = 0; first < rows; first += kGramRows) {
    const int64_t count = rows - first < kGramRows ? rows - first : kGramRows;
    for (int64_t i = 0; i < count; ++i)
      std::memcpy(s.rows_of_gram + i * triangle.padded, a.row(first + i), sizeof(T) * p.columns);
    triangle.add({s.rows_of_gram, triangle.padded}, count, s.rows.coefficient(kVectorCount<kVectors>) + first, 0,
                 triangle.panels, s.panel, s.gram);
  }
}

template <class T, Vectors kVectors>
static void pass_task(const RegressionParameters& p, int64_t task, const Parts<T, kVectors>& parts,
                      PassScratch<T, kVectors>& s) {
  constexpr int count = kVectorCount<kVectors>;
  const Chunks chunks = chunks_of<kVectors>(p);
  const int64_t batch = task / chunks.count, chunk = task % chunks.count;
  const InputView A = matrix(p.A, p, batch);
  const RowInputs in(p, batch);
  load_vector<T>(matrix(p.x, p, batch), 0, p.columns, s.ld, s.x);
  if (kIsProduct<kVectors>) load_vector<T>(matrix(p.v, p, batch), 0, p.columns, s.ld, s.v);
  Sums& sums = parts.sums_of(batch, chunk) = Sums{};
  std::memset(parts.vector(batch, chunk, 0), 0, sizeof(double) * parts.count * parts.columns);
  std::memset(parts.gram(batch, chunk), 0, sizeof(double) * parts.triangle);
  std::memset(s.acc, 0, sizeof(T) * parts.count * s.ld), std::memset(s.gram, 0, sizeof(T) * parts.triangle);
  int64_t unflushed = 0;
  for_blocks(chunks.begin(chunk), chunks.end(p, chunk), block_rows<T>(p), [&](Block block) {
    const int64_t rows = block.count, padded = round_up(rows, kLanes<T>);
    const BlockRows<T> a = block_of<T>(p, A, block, s.packed);
    products_of_rows<T>(a, rows, padded, p.columns, s.x, s.rows.z);
    if (kIsProduct<kVectors>) products_of_rows<T>(a, rows, padded, p.columns, s.v, s.rows.t);
    load_targets<T>(in, block, padded, s.rows);
    const double raised = begin_rows<T>(p, rows, padded, s.rows, sums);
    if (raised > 0) {
      const double squared = power_of_two(-2 * raised);
      for (int64_t i = 0; i < parts.triangle; ++i)
        s.gram[i] *= static_cast<T>(squared), parts.gram(batch, chunk)[i] *= squared;
      for (int i = 0; i < count; ++i) {
        const double factor = scaled(1, degree_at<kVectors>(i), power_of_two(-raised));
        for (int64_t j = 0; j < s.ld; ++j) s.acc[i * s.ld + j] *= static_cast<T>(factor);
        double* const done = parts.vector(batch, chunk, i);
        for (int64_t j = 0; j < p.columns; ++j) done[j] *= factor;
      }
    }
    add_rows<T, kVectors>(p, padded, s.rows, sums);
    if (p.penalty_weight)
      add_weighted_rows<T, count + 1>(a, rows, p.columns, s.rows.coefficients, s.acc, s.ld);
    else
      add_weighted_rows<T, count>(a, rows, p.columns, s.rows.coefficients, s.acc, s.ld);
    if constexpr (kWithGram<kVectors>) add_gram<T, kVectors>(p, a, rows, s);
    unflushed += rows;
    if (unflushed >= kFlushRows) flush<T, kVectors>(parts, s, batch, chunk), unflushed = 0;
  });
  flush<T, kVectors>(parts, s, batch, chunk);
}

template <class T, Vectors kVectors>
static void pass_run(const RegressionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena workspace(p.workspace), arena(memory);
  const Parts<T, kVectors> parts(p, workspace);
  PassScratch<T, kVectors> scratch(p, arena);
  for (int64_t task = begin; task < end; ++task) pass_task<T, kVectors>(p, task, parts, scratch);
}

template <Vectors kVectors>
RESCALED_INLINE void recenter_vectors(double by, double* const* vectors, int64_t columns) {
  for (int i = 0; i < kVectorCount<kVectors>; ++i)
    if (const int other = target_of<kVectors>(i); other >= 0)
      for (int64_t j = 0; j < columns; ++j) vectors[i][j] += by * vectors[other][j];
}

// Joins the chunks of a problem, in their order, into the first.
template <class T, Vectors kVectors>
static Sums& join_chunks(const Parts<T, kVectors>& parts, int64_t batch) {
  constexpr int count = kVectorCount<kVectors>;
  Sums& sums = parts.sums_of(batch, 0);
  double exponent = sums.exponent;
  for (int64_t chunk = 1; chunk < parts.chunks; ++chunk) {
    const double other = parts.sums_of(batch, chunk).exponent;
    exponent = other > exponent ? other : exponent;
  }
  double* first[RowBlock<double>::kMostVectors];
  for (int64_t i = 0; i < parts.count; ++i) first[i] = parts.vector(batch, 0, i);
  for (int64_t chunk = 0; chunk < parts.chunks; ++chunk) {
    Sums& part = parts.sums_of(batch, chunk);
    double* vectors[RowBlock<double>::kMostVectors];
    for (int64_t i = 0; i < parts.count; ++i) vectors[i] = parts.vector(batch, chunk, i);
    const double factor = power_of_two(part.exponent - exponent);
    rescale(part, exponent);
    for (int i = 0; i < count; ++i)
      for (int64_t j = 0; j < parts.columns; ++j) vectors[i][j] = scaled(vectors[i][j], degree_at<kVectors>(i), factor);
    const double squared = factor * factor;
    double *const gram = parts.gram(batch, 0), *const more = parts.gram(batch, chunk);
    for (int64_t i = 0; i < parts.triangle; ++i) gram[i] = (chunk == 0 ? 0 : gram[i]) + squared * more[i];
    if (chunk == 0) continue;
    recenter_vectors<kVectors>(part.center - sums.center, vectors, parts.columns);
    recenter(part, sums.center);
    join_sums(sums, part);
    for (int64_t i = 0; i < parts.count; ++i)
      for (int64_t j = 0; j < parts.columns; ++j) first[i][j] += vectors[i][j];
  }
  return sums;
}

// Gauss-Newton's Hessian: the Gram and its two-sided correction, from the vectors.
template <class T, Vectors kVectors>
static void write_hessian(const RegressionParameters& p, const Totals& t, const double* const* h, const double* gram,
                          OutputView hessian) {
  const Triangle<T> triangle(p.columns);
  T* const to = static_cast<T*>(hessian.data);
  const auto side = [&](int64_t j) { return sides_at(p.form, t, h[0][j], h[1][j], h[2][j]); };
  for (int64_t i = 0; i < p.columns; ++i) {
    const Sides row = side(i);
    for (int64_t j = 0; j <= i; ++j) {
      const Sides column = side(j);
      const double value =
          gram[triangle.index(i, j)] / t.factor + t.square * row.p * column.p - row.p * column.q - row.q * column.p;
      to[i * hessian.row + j * hessian.column] = to[j * hessian.row + i * hessian.column] = static_cast<T>(value);
    }
  }
}

template <class T, Vectors kVectors>
static void finish_run(const RegressionParameters& p, int64_t begin, int64_t end, void*) {
  constexpr int count = kVectorCount<kVectors>;
  Arena workspace(p.workspace);
  const Parts<T, kVectors> parts(p, workspace);
  for (int64_t batch = begin; batch < end; ++batch) {
    const Sums& sums = join_chunks<T, kVectors>(parts, batch);
    const Totals t = totals_of(sums, p.form);
    if (p.statistics) write_statistics(sums, p.form, static_cast<double*>(matrix(p.statistics, p, batch).data));
    const OutputView vector = matrix(p.vector, p, batch);
    const double* h[RowBlock<double>::kMostVectors];
    for (int64_t i = 0; i < parts.count; ++i) h[i] = parts.vector(batch, 0, i);
    const double penalty = unscaled_factor(sums, p.form);
    for (int64_t j = 0; j < p.columns; ++j) {
      double value;
      if constexpr (kVectors == Vectors::gradient || kWithGram<kVectors>)
        value = gradient_at(t, h[0][j], h[1][j], h[2][j]);
      else if constexpr (kVectors == Vectors::product)
        value = product_at(p, sums, t, {h[0][j], h[1][j], h[2][j], h[3][j], h[4][j], h[5][j]});
      else
        value = h[0][j];
      static_cast<double*>(vector.data)[j * vector.row] = p.penalty_weight ? value + penalty * h[count][j] : value;
    }
    if constexpr (kWithGram<kVectors>)
      write_hessian<T, kVectors>(p, t, h, parts.gram(batch, 0), matrix(p.hessian, p, batch));
  }
}

// The sums and vectors as they are, for whoever has the other parts of the rows.
template <class T, Vectors kVectors>
static void part_run(const RegressionParameters& p, int64_t begin, int64_t end, void*) {
  constexpr int count = kVectorCount<kVectors>;
  Arena workspace(p.workspace);
  const Parts<T, kVectors> parts(p, workspace);
  for (int64_t batch = begin; batch < end; ++batch) {
    write_sums(join_chunks<T, kVectors>(parts, batch), static_cast<double*>(matrix(p.statistics, p, batch).data));
    const OutputView out = matrix(p.vector, p, batch);
    const auto put = [&](int64_t i, int64_t from, bool there) {
      double* const to = static_cast<double*>(row_of(out, i).data);
      for (int64_t j = 0; j < p.columns; ++j) to[j * out.column] = there ? parts.vector(batch, 0, from)[j] : 0;
    };
    for (int i = 0; i < RegressionPart::vector_penalty; ++i) put(i, i, i < count);
    put(RegressionPart::vector_penalty, count, static_cast<bool>(p.penalty_weight));
  }
}

template <class T, Vectors kVectors>
static RegressionProgram program_of(const RegressionParameters& p) {
  RegressionProgram program;
  program.steps[0] = {p.batches * chunks_of<kVectors>(p).count, bytes_of<PassScratch<T, kVectors>>(p),
                      pass_run<T, kVectors>};
  program.steps[1] = {p.batches, 0, finish_run<T, kVectors>};
  program.count = 2;
  program.workspace_bytes = bytes_of<Parts<T, kVectors>>(p);
  return program;
}
template <Vectors kVectors>
static RegressionProgram program_of(const RegressionParameters& p) {
  return p.A.dtype == DType::float64 ? program_of<double, kVectors>(p) : program_of<float, kVectors>(p);
}

template <class T, Vectors kVectors>
static RegressionProgram part_of(const RegressionParameters& p) {
  RegressionProgram program = program_of<T, kVectors>(p);
  program.steps[1].run = part_run<T, kVectors>;
  return program;
}
template <Vectors kVectors>
static RegressionProgram part_of(const RegressionParameters& p) {
  return p.A.dtype == DType::float64 ? part_of<double, kVectors>(p) : part_of<float, kVectors>(p);
}

}  // namespace

RegressionProgram regression_part_evaluate(const RegressionParameters& p) {
  return p.form == Form::plain ? part_of<Vectors::plain_gradient>(p) : part_of<Vectors::gradient>(p);
}
RegressionProgram regression_evaluate(const RegressionParameters& p) {
  return p.form == Form::plain ? program_of<Vectors::plain_gradient>(p) : program_of<Vectors::gradient>(p);
}
RegressionProgram regression_gauss_newton(const RegressionParameters& p) {
  return program_of<Vectors::gauss_newton>(p);
}
RegressionProgram regression_product(const RegressionParameters& p) {
  return p.form == Form::plain ? program_of<Vectors::plain_product>(p) : program_of<Vectors::product>(p);
}

}  // namespace rescaled::RESCALED_ISA
