// SPDX-License-Identifier: BSD-3-Clause
// The torch-free matrix regression kernels on buffers of exactly their size: what the sanitizers watch. Everything is
// compared with the formulas in float64, row by row.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <type_traits>
#include <vector>

#include "../../csrc/kernels/cpu/isa.h"
#include "../../csrc/kernels/matrix_regression/parameters.h"

using namespace rescaled;

namespace {

using Doubles = std::vector<double>;
using Number = MatrixRegressionStatistics;

double random_value() { return std::rand() / (RAND_MAX + 1.0) * 2 - 1; }

int cases = 0;
double worst = 0;

void expect_close(const char* what, const Doubles& found, const Doubles& expected, double tolerance) {
  double error = 0, size = 1e-300;
  for (const double x : expected) size = std::max(size, std::fabs(x));
  for (size_t i = 0; i < expected.size(); ++i) {
    const double e = std::fabs(found[i] - expected[i]) / size / tolerance;
    if (!(e <= error)) error = e;  // NaN counts as the largest
  }
  worst = std::max(worst, error);
  if (error <= 1) return;
  std::printf("FAILED: %s, %.2g of the tolerance\n", what, error);
  for (size_t i = 0; i < expected.size(); ++i) std::printf("  got %g, expected %g\n", found[i], expected[i]);
  std::exit(1);
}

// Runs a program's tasks one after another, each on scratch memory of exactly the size it asked for.
void run(const MatrixRegressionProgram& program, MatrixRegressionParameters& p) {
  for (int i = 0; i < program.count; ++i) {
    void* const scratch = std::aligned_alloc(64, (program.steps[i].scratch_bytes / 64 + 1) * 64);
    for (int64_t task = program.steps[i].tasks - 1; task >= 0; --task)  // any order will do
      program.steps[i].run(p, task, task + 1, scratch);
    std::free(scratch);
  }
}

// [batches, rows, columns] whose last element is the last of its memory; strided: every second column.
template <class T>
struct Buffer {
  int64_t rows, columns, column, row, batch;
  std::vector<T> memory;
  Buffer(int64_t b, int64_t r, int64_t c, bool strided = false)
      : rows(r), columns(c), column(strided ? 2 : 1), row(c * column + strided), batch(r * row) {
    memory.resize(b * r * c == 0 ? 0 : (b - 1) * batch + (r - 1) * row + (c - 1) * column + 1);
  }
  void fill(double scale, double shift) {
    for (T& x : memory) x = static_cast<T>(scale * random_value() + shift);
  }
  void set(int64_t b, int64_t i, int64_t j, double x) { memory[b * batch + i * row + j * column] = static_cast<T>(x); }
  double at(int64_t b, int64_t i, int64_t j) const { return memory[b * batch + i * row + j * column]; }
  template <class Pointer>
  Matrices<Pointer> view() {
    Matrices<Pointer> m;
    m.data = memory.data();
    m.dtype = std::is_same_v<T, int64_t> ? DType::int64
              : sizeof(T) == 4           ? DType::float32
              : sizeof(T) == 8           ? DType::float64
                                         : DType::boolean;
    m.row = row, m.column = column, m.batch[0] = batch;
    return m;
  }
  operator Input() { return view<const void*>(); }
  operator Output() { return view<void*>(); }
};

struct Case {
  Kind kind;
  Form form;
  bool full, causal, masked, strided;
  int64_t n1, n2, d;
  Target source;
};

constexpr int64_t kBatches = 2, kTeacherSize = 3;

// What stands for a target that is not dense; the matrix it stands for goes into `target`.
template <class T>
struct Source {
  Buffer<T> rows, columns, numbers;
  std::vector<int64_t> begins, column;
  Buffer<T> values;
  explicit Source(const Case& c)
      : rows(kBatches, c.n1, kTeacherSize, c.strided),
        columns(kBatches, c.n2, kTeacherSize, c.strided),
        numbers(kBatches, c.n1, Number::count),
        begins{0},
        values(1, 0, 1) {}

  void teach(MatrixRegressionParameters& p, Kind kind, Buffer<T>& target) {
    rows.fill(1, 0.3), columns.fill(1, 0.3);
    MatrixRegressionParameters own = p;
    own.source = Target::zero, own.form = Form::rescaled, own.statistics = numbers;
    own.scores.kind = kind, own.scores.query = rows, own.scores.key = columns, own.scores.head_size = kTeacherSize;
    run(matrix_regression_cpu_kernels().statistics(own), own);
    p.source = Target::teacher, p.teacher_kind = kind, p.teacher_size = kTeacherSize;
    p.target_rows = rows, p.target_columns = columns, p.target_values = numbers, p.target = Input();
    for (int64_t b = 0; b < kBatches; ++b)
      for (int64_t i = 0; i < target.rows; ++i)
        for (int64_t j = 0; j < target.columns; ++j) {
          double z = 0;
          for (int64_t d = 0; d < kTeacherSize; ++d) z += rows.at(b, i, d) * columns.at(b, j, d);
          const double u = kind == Kind::exp ? std::exp(z) : kind == Kind::cosh ? std::cosh(z) : std::sinh(z);
          target.set(b, i, j, u * std::exp2(-numbers.at(b, i, Number::reference)) / numbers.at(b, i, Number::sum));
        }
  }

  // The same places in every matrix of the batch.
  void scatter(MatrixRegressionParameters& p, Buffer<T>& target) {
    for (int64_t i = 0; i < target.rows; ++i) {
      for (int64_t j = 0; j < target.columns; ++j)
        if (random_value() < -0.4) column.push_back(j);
      begins.push_back(static_cast<int64_t>(column.size()));
    }
    p.stored = static_cast<int64_t>(column.size());
    values = Buffer<T>(kBatches, p.stored, 1);
    values.fill(1, 0);
    for (int64_t b = 0; b < kBatches; ++b)
      for (int64_t i = 0; i < target.rows; ++i) {
        for (int64_t j = 0; j < target.columns; ++j) target.set(b, i, j, 0);
        for (int64_t x = begins[i]; x < begins[i + 1]; ++x) target.set(b, i, column[x], values.at(b, x, 0));
      }
    const auto indices = [](const std::vector<int64_t>& from) {
      Input m;
      m.data = from.data(), m.dtype = DType::int64, m.row = 1;
      return m;
    };
    p.source = Target::sparse, p.target = Input();
    p.target_rows = indices(begins), p.target_columns = indices(column), p.target_values = values;
    p.target_values.column = 0;
  }
};

// One row in float64, scaled as the statistics are.
struct Row {
  const Doubles &u, &du, &b, &c;
  double beta, square, unit, reference;
};

// Tangents of query, key and (dense) target, what the kernels make of them, and the formulas (15) to (17) of
// docs/math.md.
template <class T>
struct Along {
  using Numbers = MatrixRegressionTangents;
  Buffer<T> query, key, target, weight, numbers, rows, columns[2], elements[2];
  Doubles expected[2];  // G^T Q and its tangent, [n2][d]
  double terms = 0;
  explicit Along(const Case& c)
      : query(kBatches, c.n1, c.d),
        key(kBatches, c.n2, c.d),
        target(kBatches, c.n1, c.n2, c.strided),
        weight(kBatches, c.n1, 1),
        numbers(kBatches, c.n1, Numbers::count),
        rows(kBatches, c.n1, c.d),
        columns{{kBatches, c.n2, c.d}, {kBatches, c.n2, c.d}},
        elements{{kBatches, c.n1, c.n2}, {kBatches, c.n1, c.n2}},
        expected{Doubles(c.n2 * c.d), Doubles(c.n2 * c.d)} {
    const double scale = 1 / std::sqrt(c.d + 1.0);
    query.fill(scale, 0), key.fill(scale, 0), target.fill(1.0 / c.n2, 0), weight.fill(1, 0.2);
  }
  void run_all(MatrixRegressionParameters& p) {
    const MatrixRegressionKernels& kernels = matrix_regression_cpu_kernels();
    const bool dense = p.source == Target::dense;
    p.weight = weight, p.weight.column = 0;
    const auto both = [&](int second) {
      p.rows = Output(), p.columns = columns[second];
      run(kernels.columns(p), p);
      p.columns = Output(), p.elements = elements[second];
      run(kernels.elements(p), p);
      p.elements = Output();
    };
    both(0);
    p.scores.tangent_query = query, p.scores.tangent_key = p.scores.tangent_value = key;
    if (dense) p.tangent_target = target;
    if (!dense) std::fill(target.memory.begin(), target.memory.end(), T(0));
    p.tangents = numbers;
    run(kernels.tangents(p), p);
    p.saved_tangents = numbers, p.rows = rows;
    run(kernels.gradient_tangent(p), p);
    both(1);
  }
  void start() {
    for (Doubles& sums : expected) std::fill(sums.begin(), sums.end(), 0);
    terms = 1;
  }
  template <class TakesPart>
  void check_row(const Case& c, int64_t b, int64_t i, const Buffer<T>& q, const Buffer<T>& k, const Row& r, double size,
                 double tolerance, TakesPart takes_part) {
    const bool rescaled = c.form == Form::rescaled, normalized = c.form == Form::normalized;
    const auto part = [&](int64_t j) { return rescaled ? r.b[j] : r.u[j]; };
    Doubles t(c.n2), moved(c.n2);
    double sum = 0, beta = 0, loss = 0, largest = 1;
    for (int64_t j = 0; j < c.n2; ++j) {
      if (!takes_part(j)) continue;
      for (int64_t d = 0; d < c.d; ++d) t[j] += query.at(b, i, d) * k.at(b, j, d) + q.at(b, i, d) * key.at(b, j, d);
      moved[j] = target.at(b, i, j), largest = std::max(largest, std::fabs(t[j]));
      const double turned = r.du[j] * t[j], step = r.unit * moved[j];
      loss += turned * (r.c[j] - r.beta) - r.c[j] * step;
      if (c.form != Form::plain) sum += turned;
      if (rescaled) beta += moved[j] * (r.c[j] - r.unit * r.b[j]) + r.b[j] * turned;
      if (normalized) beta += turned * (r.c[j] + r.u[j]) - r.u[j] * moved[j];
    }
    beta -= sum * (r.square + (normalized ? r.beta : 0));
    const double half = normalized ? 1 : std::exp2(r.reference), w = weight.at(b, i, 0), whole = half * half * w;
    const double bound = size * largest * (1 + std::fabs(sum) + std::fabs(beta));
    const auto close = [&](const char* what, Doubles found, Doubles wanted, double of) {
      found.push_back(of), wanted.push_back(of);
      expect_close(what, found, wanted, tolerance);
    };
    close("tangent of the loss", {numbers.at(b, i, Numbers::loss)}, {half * loss * half}, bound * half * half);
    close("tangents", {numbers.at(b, i, Numbers::sum), numbers.at(b, i, Numbers::beta)}, {sum, beta}, bound);
    Doubles row(c.d), found_row(c.d), of_target[2], found_target[2];
    for (int64_t j = 0; j < c.n2; ++j) {
      const double left = r.c[j] - r.beta, g = r.du[j] * left,
                   turn = r.du[j] * t[j] - sum * part(j) - r.unit * moved[j],
                   second = (r.u[j] * t[j] - (normalized ? sum * r.du[j] : 0)) * left + r.du[j] * (turn - beta);
      for (int64_t d = 0; d < c.d; ++d) {
        row[d] += second * k.at(b, j, d) + g * key.at(b, j, d);
        expected[0][j * c.d + d] += whole * g * q.at(b, i, d);
        expected[1][j * c.d + d] += whole * (second * q.at(b, i, d) + g * query.at(b, i, d));
      }
      of_target[0].push_back(takes_part(j) ? -whole * r.unit * r.c[j] : 0);
      of_target[1].push_back(takes_part(j) ? -whole * (r.unit * turn + (rescaled ? sum * r.c[j] : 0)) : 0);
      for (const int s : {0, 1}) found_target[s].push_back(c.causal && j > i ? 0 : elements[s].at(b, i, j));
    }
    for (int64_t d = 0; d < c.d; ++d) found_row[d] = rows.at(b, i, d);
    close("tangent of the gradient", found_row, row, bound);
    for (const int s : {0, 1}) close("elements", found_target[s], of_target[s], bound * std::fabs(whole));
    terms += bound * std::fabs(whole);
  }
  void check_columns(const Case& c, int64_t b, double tolerance) {
    for (const int s : {0, 1}) {
      Doubles found;
      for (int64_t j = 0; j < c.n2; ++j)
        for (int64_t d = 0; d < c.d; ++d) found.push_back(columns[s].at(b, j, d));
      Doubles wanted = expected[s];
      found.push_back(terms), wanted.push_back(terms);
      expect_close("columns", found, wanted, tolerance);
    }
  }
};

template <class T>
void check(const Case& c) {
  constexpr int64_t batches = kBatches;
  Buffer<T> query(batches, c.n1, c.d, c.strided), key(batches, c.n2, c.d, c.strided),
      target(batches, c.n1, c.n2, c.strided), direction(batches, c.n1, c.d, c.strided),
      statistics(batches, c.n1, Number::count), gradient(batches, c.n1, c.d), moment_p(batches, c.n1, c.d),
      moment_q(batches, c.n1, c.d), product(batches, c.n1, c.d);
  Source<T> source(c);
  Buffer<char> mask(batches, c.n1, c.n2);
  const double scale = 1 / std::sqrt(static_cast<double>(c.d));
  query.fill(1, 0.5), key.fill(scale, 0.5 * scale), target.fill(1.0 / c.n2, 0.5 / c.n2), direction.fill(1, 0);
  for (char& x : mask.memory) x = random_value() < 0.6;

  MatrixRegressionParameters p;
  AttentionParameters& s = p.scores;
  s.kind = c.kind, s.causal = c.causal, s.queries = c.n1, s.keys = c.n2, s.head_size = c.d;
  s.rank = 1, s.sizes[0] = s.kv_batches = batches;
  s.query = query, s.key = key, p.target = target, p.form = c.form, p.full = c.full;
  if (c.masked) s.mask = mask.view<const void*>(), s.mask.dtype = DType::boolean;
  // A teacher's sinh would have poles.
  if (c.source == Target::teacher) source.teach(p, c.kind == Kind::exp ? Kind::cosh : Kind::exp, target);
  if (c.source == Target::sparse) source.scatter(p, target);
  p.statistics = statistics;
  const MatrixRegressionKernels& kernels = matrix_regression_cpu_kernels();
  run(kernels.statistics(p), p);
  p.saved_statistics = statistics, s.value = s.key, s.value_size = c.d;
  p.rows = gradient;
  run(kernels.gradient(p), p);
  p.rows = moment_p, p.others = moment_q;
  run(kernels.moments(p), p);
  p.rows = product, p.others = Output(), p.direction = direction, p.moment_p = moment_p, p.moment_q = moment_q;
  run(kernels.product(p), p);
  Along<T> along(c);
  along.run_all(p);

  for (int64_t b = 0; b < batches; ++b) {
    along.start();
    for (int64_t i = 0; i < c.n1; ++i) {
      const auto takes_part = [&](int64_t j) {
        return !(c.masked && !mask.memory[b * mask.batch + i * mask.row + j]) && !(c.causal && j > i);
      };
      const double reference = statistics.at(b, i, Number::reference);
      Doubles u(c.n2), du(c.n2), wanted(c.n2), t(c.n2);
      double sum = 0, any = 0;
      for (int64_t j = 0; j < c.n2; ++j) {
        double z = 0;
        for (int64_t d = 0; d < c.d; ++d)
          z += query.at(b, i, d) * key.at(b, j, d), t[j] += direction.at(b, i, d) * key.at(b, j, d);
        if (!takes_part(j)) continue;
        const double size = std::exp2(-reference), even = c.kind == Kind::exp ? std::exp(z) : std::cosh(z),
                     odd = c.kind == Kind::exp ? std::exp(z) : std::sinh(z);
        u[j] = size * (c.kind == Kind::sinh ? odd : even), du[j] = size * (c.kind == Kind::sinh ? even : odd);
        wanted[j] = target.at(b, i, j), sum += u[j], any += 1;
      }
      if (any == 0) sum = 1;
      const double factor = c.form == Form::normalized ? 1 / sum : 1, unit = c.form == Form::normalized ? 1
                                                                             : c.form == Form::rescaled
                                                                                 ? sum
                                                                                 : std::exp2(-reference);
      double beta = 0, square = 0, loss = 0, magnitude = 0;
      Doubles residual(c.n2);
      for (int64_t j = 0; j < c.n2; ++j) {
        u[j] *= factor, du[j] *= factor, residual[j] = u[j] - unit * wanted[j], loss += residual[j] * residual[j] / 2;
        magnitude += std::fabs(du[j]);
        const double other = c.form == Form::rescaled ? wanted[j] : c.form == Form::normalized ? u[j] : 0;
        beta += other * residual[j], square += other * other;
      }
      Doubles g(c.d), mp(c.d), mq(c.d), h(c.d);
      double p_t = 0, q_t = 0;
      Doubles q(c.n2), diagonal(c.n2);
      for (int64_t j = 0; j < c.n2; ++j) {
        const double left = c.full ? residual[j] - beta : 0;
        q[j] = c.form == Form::rescaled ? du[j] * wanted[j] : c.form == Form::normalized ? du[j] * (u[j] + left) : 0;
        diagonal[j] = du[j] * du[j] + u[j] * left;
        p_t += du[j] * t[j], q_t += q[j] * t[j];
      }
      for (int64_t j = 0; j < c.n2; ++j)
        for (int64_t d = 0; d < c.d; ++d) {
          const double k = key.at(b, j, d);
          g[d] += du[j] * (residual[j] - beta) * k, mp[d] += du[j] * k, mq[d] += q[j] * k;
          h[d] += (diagonal[j] * t[j] - du[j] * (q_t - square * p_t) - q[j] * p_t) * k;
        }
      const auto row = [&](Buffer<T>& of) {
        Doubles out;
        for (int64_t d = 0; d < of.columns; ++d) out.push_back(of.at(b, i, d));
        return out;
      };
      // Of sums that may cancel: the size of their terms, which the number appended brings in.
      const double eps = sizeof(T) == 4 ? 6e-8 : 1.2e-16, size = 1 + magnitude + std::fabs(sum);
      const auto close = [&](const char* what, Doubles found, Doubles expected, double terms) {
        found.push_back(terms), expected.push_back(terms);
        expect_close(what, found, expected, 40 * eps);
      };
      close("statistics", row(statistics), {reference, sum, beta, square, loss}, size * size);
      close("gradient", row(gradient), g, size * size);
      close("moment p", row(moment_p), mp, size);
      close("moment q", row(moment_q), mq, c.form == Form::normalized ? size * size : size);
      close("product", row(product), h, size * size * (1 + std::fabs(p_t) + std::fabs(q_t)));
      along.check_row(c, b, i, query, key, {u, du, wanted, residual, beta, square, unit, reference}, size * size,
                      40 * eps, takes_part);
    }
    along.check_columns(c, b, sizeof(T) == 4 ? 40 * 6e-8 : 40 * 1.2e-16);
  }
  ++cases;
}

}  // namespace

int main() {
  const int64_t sizes[][3] = {{0, 3, 2},   {3, 0, 2},   {5, 4, 0},     {1, 1, 1},     {3, 5, 2},
                              {25, 63, 4}, {49, 64, 7}, {70, 130, 33}, {9, 200, 130}, {120, 3, 8}};
  const Target sources[] = {Target::dense, Target::teacher, Target::sparse, Target::dense};
  int number = 0;
  for (const Kind kind : {Kind::exp, Kind::cosh, Kind::sinh})
    for (const Form form : {Form::rescaled, Form::normalized, Form::plain})
      for (const auto& n : sizes) {
        const Case c{kind, form, number % 2 == 0,    number % 3 == 1, number % 3 == 2, number % 5 == 4, n[0],
                     n[1], n[2], sources[number % 4]};
        const bool pole = kind == Kind::sinh && form == Form::normalized;  // near it nothing is exact
        if (!pole) check<float>(c);
        if (!pole || c.d > 0) check<double>(c);
        ++number;
      }
  std::printf("ok: %s, %d cases, worst %.2g of the tolerance\n", cpu_isa_name(), cases, worst);
}
