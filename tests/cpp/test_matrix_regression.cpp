// SPDX-License-Identifier: BSD-3-Clause
// The torch-free matrix regression kernels on buffers of exactly their size: what the sanitizers watch. Everything is
// compared with the formulas in float64, row by row.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
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
  double at(int64_t b, int64_t i, int64_t j) const { return memory[b * batch + i * row + j * column]; }
  template <class Pointer>
  Matrices<Pointer> view() {
    Matrices<Pointer> m;
    m.data = memory.data(), m.dtype = sizeof(T) == 4   ? DType::float32
                                      : sizeof(T) == 8 ? DType::float64
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
};

template <class T>
void check(const Case& c) {
  constexpr int64_t batches = 2;
  Buffer<T> query(batches, c.n1, c.d, c.strided), key(batches, c.n2, c.d, c.strided),
      target(batches, c.n1, c.n2, c.strided), direction(batches, c.n1, c.d, c.strided),
      statistics(batches, c.n1, Number::count), gradient(batches, c.n1, c.d), moment_p(batches, c.n1, c.d),
      moment_q(batches, c.n1, c.d), product(batches, c.n1, c.d);
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

  for (int64_t b = 0; b < batches; ++b)
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
      close("moment q", row(moment_q), mq, size);
      close("product", row(product), h, size * size * (1 + std::fabs(p_t) + std::fabs(q_t)));
    }
  ++cases;
}

}  // namespace

int main() {
  const int64_t sizes[][3] = {{0, 3, 2},   {3, 0, 2},   {5, 4, 0},     {1, 1, 1},     {3, 5, 2},
                              {25, 63, 4}, {49, 64, 7}, {70, 130, 33}, {9, 200, 130}, {120, 3, 8}};
  int number = 0;
  for (const Kind kind : {Kind::exp, Kind::cosh, Kind::sinh})
    for (const Form form : {Form::rescaled, Form::normalized, Form::plain})
      for (const auto& n : sizes) {
        const Case c{kind, form, number % 2 == 0, number % 3 == 1, number % 3 == 2, number % 5 == 4, n[0], n[1], n[2]};
        const bool pole = kind == Kind::sinh && form == Form::normalized;  // near it nothing is exact
        if (!pole) check<float>(c);
        if (!pole || c.d > 0) check<double>(c);
        ++number;
      }
  std::printf("ok: %s, %d cases, worst %.2g of the tolerance\n", cpu_isa_name(), cases, worst);
}
