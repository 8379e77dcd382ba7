// SPDX-License-Identifier: BSD-3-Clause
// Gradient, Hessian and the gradient's rounding errors from the vectors of a point, in one read of A: the lower
// triangle of A^T diag(D) A by register tiles, the rest by sums of rows of the same block. A dense, or sparse with few
// columns.
#include "../parts.h"
#include "csr.h"
#include "gram.h"

namespace rescaled::RESCALED_ISA {
namespace {

constexpr int64_t kFlushBlocks = 16;  // blocks after which sums in T are added to those in double
constexpr int64_t kPanelsPerGroup =
    8;  // of one task; more are shared out, each group reading A again, d / 24 times the work
constexpr int kSides = RegressionSides::count;
// Tasks are (batch, chunk of rows, group of panels).
template <class T>
struct GramTasks {
  Triangle<T> triangle;
  int64_t groups, chunks, rows;  // rows of a chunk
  explicit GramTasks(const RegressionParameters& p) : triangle(p.columns) {
    const int64_t panels = triangle.panels;
    groups = panels > kPanelsPerGroup ? (panels + kPanelsPerGroup - 1) / kPanelsPerGroup : 1;
    // A chunk costs a copy of the triangle: it should have several times as many rows as columns.
    const int64_t wanted = 16 / (p.batches * groups < 16 ? p.batches * groups : 16), least = 4 * p.columns + 1024;
    rows = (p.rows + wanted - 1) / wanted;
    rows = round_up(rows < least ? least : rows, kGramRows);
    chunks = p.rows > 0 ? (p.rows + rows - 1) / rows : 1;
  }
};

template <class T>
struct GramParts {
  double *gram, *sides;  // [batches][chunks][panels][padded][panel lanes], [batches][chunks][kSides][columns]
  GramParts(const RegressionParameters& p, Arena& arena) {
    const GramTasks<T> tasks(p);
    gram = arena.take<double>(p.batches * tasks.chunks * tasks.triangle.size());
    sides = arena.take<double>(p.batches * tasks.chunks * kSides * p.columns);
  }
};

template <class T>
struct GramScratch {
  T *packed, *panel, *gram, *sides, *coefficients, *diagonal;
  int64_t ld;  // of the sides
  GramScratch(const RegressionParameters& p, Arena& arena) : ld(round_up(p.columns, kLanes<T>)) {
    const GramTasks<T> tasks(p);
    packed = arena.take<T>(kGramRows * tasks.triangle.padded), panel = arena.take<T>(kGramRows * kPanelLanes<T>);
    const int64_t panels = tasks.triangle.panels < kPanelsPerGroup ? tasks.triangle.panels : kPanelsPerGroup;
    gram = arena.take<T>(panels * tasks.triangle.panel_size()), sides = arena.take<T>(kSides * ld);
    coefficients = arena.take<T>((kSides + 1) * kMostRows), diagonal = arena.take<T>(kGramRows);
  }
};

// The block's diagonal and coefficients, by curvature.
template <class T>
static void load_curvature(const RegressionParameters& p, InputView rows, Block block, GramScratch<T>& s) {
  using Row = RegressionRows;
  const auto vector = [&](int64_t k, T* to) {
    const InputView from{static_cast<const T*>(rows.data) + k * rows.row, rows.dtype, 1, 0};
    load_rows<T>(from, block, block.count, to);
  };
  const bool full = p.curvature == Curvature::full, clipped = p.curvature == Curvature::clipped;
  vector(Row::gradient, s.coefficients), vector(Row::p, s.coefficients + kMostRows);
  vector(Row::noise, s.coefficients + 3 * kMostRows);
  vector(Row::diagonal, s.diagonal), vector(Row::q, s.coefficients + 2 * kMostRows);
  T* const rest = s.coefficients + 4 * kMostRows;
  if (full || clipped) vector(Row::diagonal_rest, rest);
  for (int64_t i = 0; (full || clipped) && i < block.count; ++i)
    if (full || rest[i] > 0) s.diagonal[i] += rest[i];
  if (full) vector(Row::q_rest, rest);
  for (int64_t i = 0; full && i < block.count; ++i) s.coefficients[2 * kMostRows + i] += rest[i];
}

// sides[3] += noise of each row times the squares of A's.
template <class T>
static void add_squares(Rows<T> a, int64_t count, int64_t columns, const T* weights, T* acc) {
  for (int64_t i = 0; i < count; ++i) {
    const T* const row = a.data + i * a.ld;
    const T w = weights[i];
    for (int64_t j = 0; j < columns; ++j) acc[j] += w * row[j] * row[j];
  }
}

// Rows of A, `ld` wide, zero beyond the last column.
template <class T>
static void load_block(const RegressionParameters& p, int64_t batch, Block block, int64_t ld, T* to) {
  pack_block<T>(matrix(p.A, p, batch), block, p.columns, ld, to);
}
// Of a sparse A: for the rows of few columns, which tiles multiply faster than pairs of values.
template <class T>
static void load_block(const CsrParameters& p, int64_t batch, Block block, int64_t ld, T* to) {
  std::memset(to, 0, sizeof(T) * block.count * ld);
  with_rows(p, batch, [&](const auto& a) {
    for (int64_t r = 0; r < block.count; ++r) {
      const int64_t row = block.row(r);
      if (!remember(p, is_inside(p, a, row, row + 1))) return;
      with_values<T>(a.dtype, a.values, [&](auto* values) {
        for (int64_t k = a.crow[row]; k < a.crow[row + 1]; ++k)
          to[r * ld + a.col[k]] += static_cast<T>(value_of(values[k]));
      });
    }
  });
}

template <class T, class P>
static void gram_task(const P& p, int64_t task, const GramParts<T>& parts, GramScratch<T>& s) {
  const GramTasks<T> tasks(p);
  const int64_t group = task % tasks.groups, part = task / tasks.groups, batch = part / tasks.chunks,
                begin = part % tasks.chunks * tasks.rows,
                end = begin + tasks.rows < p.rows ? begin + tasks.rows : p.rows;
  const Triangle<T>& triangle = tasks.triangle;
  const int64_t first_panel = group * kPanelsPerGroup, last_panel = first_panel + kPanelsPerGroup < triangle.panels
                                                                        ? first_panel + kPanelsPerGroup
                                                                        : triangle.panels;
  const int64_t gram_size = (last_panel - first_panel) * triangle.panel_size();
  double* const gram = parts.gram + part * triangle.size() + first_panel * triangle.panel_size();
  double* const sides = parts.sides + part * kSides * p.columns;
  const InputView rows = matrix(p.resident_rows, p, batch);
  std::memset(gram, 0, sizeof(double) * gram_size), std::memset(s.gram, 0, sizeof(T) * gram_size);
  std::memset(s.sides, 0, sizeof(T) * kSides * s.ld);
  if (group == 0) std::memset(sides, 0, sizeof(double) * kSides * p.columns);
  const auto flush = [&] {
    for (int64_t i = 0; i < gram_size; ++i) gram[i] += double{s.gram[i]};
    std::memset(s.gram, 0, sizeof(T) * gram_size);
    if (group != 0) return;
    for (int k = 0; k < kSides; ++k)
      for (int64_t j = 0; j < p.columns; ++j) sides[k * p.columns + j] += double{s.sides[k * s.ld + j]};
    std::memset(s.sides, 0, sizeof(T) * kSides * s.ld);
  };
  int64_t blocks = 0;
  for_blocks(begin, end, kGramRows, [&](Block block) {
    const int64_t count = block.count;
    load_block<T>(p, batch, block, triangle.padded, s.packed);
    const Rows<T> a{s.packed, triangle.padded};
    load_curvature<T>(p, rows, block, s);
    triangle.add(a, count, s.diagonal, first_panel, last_panel, s.panel, s.gram);
    if (group == 0) {
      const BlockRows<T> all{a.data, kStreams * a.ld, a.ld};
      add_weighted_rows<T, 3>(all, count, p.columns, s.coefficients, s.sides, s.ld);
      add_squares<T>(a, count, p.columns, s.coefficients + 3 * kMostRows, s.sides + 3 * s.ld);
    }
    if (++blocks % kFlushBlocks == 0) flush();
  });
  flush();
}

template <class T, class P>
static void gram_run(const P& p, int64_t begin, int64_t end, void* memory) {
  Arena workspace(p.workspace), arena(memory);
  const GramParts<T> parts(p, workspace);
  GramScratch<T> scratch(p, arena);
  for (int64_t task = begin; task < end; ++task) gram_task<T>(p, task, parts, scratch);
}

// Sums the chunks' sides into the first's.
template <class T>
static double* sum_sides(const GramParts<T>& parts, int64_t chunks, int64_t columns, int64_t batch) {
  const int64_t size = kSides * columns;
  double* const sides = parts.sides + batch * chunks * size;
  for (int64_t chunk = 1; chunk < chunks; ++chunk)
    for (int64_t i = 0; i < size; ++i) sides[i] += sides[chunk * size + i];
  return sides;
}

template <class T, class P>
static void sides_finish(const P& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const GramParts<T> parts(p, workspace);
  const GramTasks<T> tasks(p);
  for (int64_t batch = begin; batch < end; ++batch) {
    const double* const sides = sum_sides<T>(parts, tasks.chunks, p.columns, batch);
    const OutputView gradient = matrix(p.gradient, p, batch), noise = matrix(p.noise, p, batch);
    for (int64_t j = 0; j < p.columns; ++j) {
      static_cast<T*>(gradient.data)[j * gradient.row] = static_cast<T>(sides[j]);
      static_cast<T*>(noise.data)[j * noise.row] = static_cast<T>(sides[3 * p.columns + j]);
    }
  }
}

template <class T>
static double gram_at(const GramParts<T>& parts, const GramTasks<T>& tasks, int64_t batch, int64_t i, int64_t j) {
  const double* const gram = parts.gram + batch * tasks.chunks * tasks.triangle.size() + tasks.triangle.index(i, j);
  double sum = 0;
  for (int64_t chunk = 0; chunk < tasks.chunks; ++chunk) sum += gram[chunk * tasks.triangle.size()];
  return sum;
}

// Row i of the Hessian up to the diagonal, and its mirror image.
template <class T, class P>
static void hessian_finish(const P& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const GramParts<T> parts(p, workspace);
  const GramTasks<T> tasks(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / p.columns, i = task % p.columns;
    const double* const side_p = parts.sides + batch * tasks.chunks * kSides * p.columns + p.columns;
    const double* const side_q = side_p + p.columns;
    const double square =
        static_cast<const double*>(matrix(p.saved_statistics, p, batch).data)[RegressionStatistics::square];
    const OutputView hessian = matrix(p.hessian, p, batch);
    T* const to = static_cast<T*>(hessian.data);
    for (int64_t j = 0; j <= i; ++j) {
      const double sum = gram_at<T>(parts, tasks, batch, i, j) + square * side_p[i] * side_p[j] -
                         side_p[i] * side_q[j] - side_q[i] * side_p[j];
      to[i * hessian.row + j * hessian.column] = to[j * hessian.row + i * hessian.column] = static_cast<T>(sum);
    }
  }
}

// Both as they are, float64: what is subtracted from a Gram must not be rounded beside it.
template <class T>
static void side_parts(const RegressionParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const GramParts<T> parts(p, workspace);
  const GramTasks<T> tasks(p);
  for (int64_t batch = begin; batch < end; ++batch) {
    const double* const sides = sum_sides<T>(parts, tasks.chunks, p.columns, batch);
    const OutputView out = matrix(p.vector, p, batch);
    for (int k = 0; k < kSides; ++k)
      for (int64_t j = 0; j < p.columns; ++j)
        static_cast<double*>(out.data)[k * out.row + j * out.column] = sides[k * p.columns + j];
  }
}
template <class T>
static void gram_parts(const RegressionParameters& p, int64_t begin, int64_t end, void*) {
  Arena workspace(p.workspace);
  const GramParts<T> parts(p, workspace);
  const GramTasks<T> tasks(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t batch = task / p.columns, i = task % p.columns;
    const OutputView hessian = matrix(p.hessian, p, batch);
    double* const to = static_cast<double*>(hessian.data);
    for (int64_t j = 0; j <= i; ++j)
      to[i * hessian.row + j * hessian.column] = to[j * hessian.row + i * hessian.column] =
          gram_at<T>(parts, tasks, batch, i, j);
  }
}

template <class T, class P>
static Program<P> curvature_program(const P& p) {
  const GramTasks<T> tasks(p);
  return {{{p.batches * tasks.chunks * tasks.groups, bytes_of<GramScratch<T>>(p), gram_run<T, P>},
           {p.batches, 0, sides_finish<T, P>},
           {p.batches * p.columns, 0, hessian_finish<T, P>}},
          3,
          bytes_of<GramParts<T>>(p)};
}

template <class T>
static RegressionProgram gram_program(const RegressionParameters& p) {
  RegressionProgram program = curvature_program<T>(p);
  program.steps[1].run = side_parts<T>, program.steps[2].run = gram_parts<T>;
  return program;
}

}  // namespace

RegressionProgram regression_part_gram(const RegressionParameters& p) {
  return p.A.dtype == DType::float64 ? gram_program<double>(p) : gram_program<float>(p);
}
RegressionProgram regression_curvature(const RegressionParameters& p) {
  return p.A.dtype == DType::float64 ? curvature_program<double>(p) : curvature_program<float>(p);
}
CsrProgram csr_dense_curvature(const CsrParameters& p) {
  return p.A.dtype == DType::float64 ? curvature_program<double>(p) : curvature_program<float>(p);
}

}  // namespace rescaled::RESCALED_ISA
