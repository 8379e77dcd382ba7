// SPDX-License-Identifier: BSD-3-Clause
// The torch-free regression kernels on buffers of exactly their size: what the sanitizers watch. Everything is compared
// with the formulas in float64, row by row.
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(RESCALED_TWIN)
#include "../../csrc/kernels/regression/cuda/regression.h"
#else
#include "../../csrc/kernels/cpu/isa.h"
#endif
#include "../../csrc/kernels/regression/parameters.h"

using namespace rescaled;

namespace {

using Doubles = std::vector<double>;

double random_value() { return std::rand() / (RAND_MAX + 1.0) * 2 - 1; }

int cases = 0;
double worst = 0;

// error <= tolerance * max(largest expected, size); `size`: of the terms of what may cancel.
void expect_close(const char* what, const Doubles& found, const Doubles& expected, double tolerance,
                  double size = 1e-300) {
  double error = found.size() == expected.size() ? 0 : HUGE_VAL;
  for (const double x : expected) size = std::max(size, std::fabs(x));
  for (size_t i = 0; i < std::min(found.size(), expected.size()); ++i) {
    const double e = std::fabs(found[i] - expected[i]) / size / tolerance;
    if (!(e <= error)) error = e;  // NaN counts as the largest
  }
  worst = std::max(worst, error);
  if (error <= 1) return;
  std::printf("FAILED: %s, %.2g of the tolerance\n", what, error);
  std::exit(1);
}

void* allocate(int64_t bytes) { return std::aligned_alloc(64, (bytes / 64 + 1) * 64); }

#if defined(RESCALED_TWIN)
void run(RegressionPass pass, RegressionParameters& p) {
  p.workspace = allocate(regression_cuda_workspace_bytes(pass, p));
  if (const char* error = regression_cuda_run(pass, p, nullptr)) {
    std::printf("FAILED: %s\n", error);
    std::exit(1);
  }
  std::free(p.workspace);
}
#define RUN(pass, p) run(RegressionPass::pass, p)
#else
// Runs a program's tasks one after another, each on scratch memory of exactly the size it asked for.
void run(const RegressionProgram& program, RegressionParameters& p) {
  p.workspace = allocate(program.workspace_bytes);
  for (int i = 0; i < program.count; ++i) {
    void* const scratch = allocate(program.steps[i].scratch_bytes);
    for (int64_t task = program.steps[i].tasks - 1; task >= 0; --task)  // any order will do
      program.steps[i].run(p, task, task + 1, scratch);
    std::free(scratch);
  }
  std::free(p.workspace);
}
#define RUN(pass, p) run(regression_cpu_kernels().pass(p), p)
#endif

template <class T>
constexpr DType kDType = sizeof(T) == 4 ? DType::float32 : DType::float64;

// [batches, rows, columns] whose last element is the last of its memory; strided: every second column.
template <class T>
struct Buffer {
  int64_t batches, rows, columns, column, row, batch;
  std::vector<T> memory;
  Buffer(int64_t b, int64_t r, int64_t c, bool strided = false)
      : batches(b), rows(r), columns(c), column(strided ? 2 : 1), row(c * column + strided), batch(r * row) {
    memory.resize(b * r * c == 0 ? 0 : (b - 1) * batch + (r - 1) * row + (c - 1) * column + 1);
  }
  void fill(double scale, double shift) {
    for (T& x : memory) x = static_cast<T>(scale * random_value() + shift);
  }
  double at(int64_t b, int64_t i, int64_t j = 0) const { return memory[b * batch + i * row + j * column]; }
  template <class Pointer>
  Matrices<Pointer> view(bool vector) {
    Matrices<Pointer> m;
    m.data = memory.data(), m.dtype = kDType<T>;
    m.row = vector ? (columns == 1 ? row : column) : row, m.column = vector ? 0 : column;
    m.batch[0] = batch;
    return m;
  }
  Doubles values(int64_t b) const {
    Doubles out;
    for (int64_t i = 0; i < rows; ++i)
      for (int64_t j = 0; j < columns; ++j) out.push_back(at(b, i, j));
    return out;
  }
};

// The formulas of docs/math.md (7) to (9), unscaled, at one problem of a batch.
struct Reference {
  int64_t n, d;
  double loss = 0, square = 0, size = 0;  // size: of the gradient's terms
  Doubles z, gradient_rows, diagonal, rest, p, q, q_rest, gradient;
  template <class T>
  Reference(const Buffer<T>& A, const Buffer<T>& b, const Buffer<T>& w, const Buffer<T>& penalty, const Buffer<T>& x,
            int64_t batch, Kind kind, Form form)
      : n(A.rows), d(A.columns), gradient(d) {
    Doubles u(n), du(n), c(n);
    double sum = 0, beta = 0;
    for (int64_t i = 0; i < n; ++i) {
      double dot = 0;
      for (int64_t j = 0; j < d; ++j) dot += A.at(batch, i, j) * x.at(batch, 0, j);
      z.push_back(dot);
      u[i] = kind == Kind::exp ? std::exp(dot) : kind == Kind::cosh ? std::cosh(dot) : std::sinh(dot);
      du[i] = kind == Kind::exp ? u[i] : kind == Kind::cosh ? std::sinh(dot) : std::cosh(dot);
      sum += u[i];
    }
    const bool normalized = form == Form::normalized;
    for (int64_t i = 0; i < n; ++i) {
      if (normalized) u[i] /= sum, du[i] /= sum;
      c[i] = u[i] - (form == Form::rescaled ? sum : 1) * b.at(batch, i);
      const double weighted = w.at(batch, i) * c[i];
      loss += .5 * weighted * c[i] + .5 * std::pow(penalty.at(batch, i) * z[i], 2);
      beta += form == Form::rescaled ? b.at(batch, i) * weighted : normalized ? u[i] * weighted : 0;
    }
    for (int64_t i = 0; i < n; ++i) {
      const double wi = w.at(batch, i), inner = wi * c[i] - beta, weight = std::pow(penalty.at(batch, i), 2);
      gradient_rows.push_back(du[i] * inner + weight * z[i]);
      diagonal.push_back(wi * du[i] * du[i] + weight), rest.push_back(u[i] * inner), p.push_back(du[i]);
      q.push_back(form == Form::rescaled ? wi * du[i] * b.at(batch, i) : normalized ? wi * du[i] * u[i] : 0);
      q_rest.push_back(normalized ? du[i] * inner : 0);
      square += form == Form::rescaled ? wi * b.at(batch, i) * b.at(batch, i) : normalized ? wi * u[i] * u[i] : 0;
      const double terms = std::fabs(du[i]) * (wi * (std::fabs(u[i]) + std::fabs(u[i] - c[i])) + std::fabs(beta));
      for (int64_t j = 0; j < d; ++j) {
        gradient[j] += gradient_rows[i] * A.at(batch, i, j);
        size = std::max(size, terms * std::fabs(A.at(batch, i, j)));
      }
    }
  }
  template <class T>
  Doubles hessian(const Buffer<T>& A, int64_t batch, double full = 1) const {
    Doubles out(d * d), side_p(d), side_q(d);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < d; ++j) {
        const double a = A.at(batch, i, j);
        side_p[j] += p[i] * a, side_q[j] += (q[i] + full * q_rest[i]) * a;
        for (int64_t k = 0; k < d; ++k) out[j * d + k] += (diagonal[i] + full * rest[i]) * a * A.at(batch, i, k);
      }
    for (int64_t j = 0; j < d; ++j)
      for (int64_t k = 0; k < d; ++k)
        out[j * d + k] += square * side_p[j] * side_p[k] - side_p[j] * side_q[k] - side_q[j] * side_p[k];
    return out;
  }
};

Doubles scaled(Doubles values, double log_scale) {
  for (double& x : values) x *= std::exp(log_scale);
  return values;
}

template <class T>
void check(Kind kind, Form form, int64_t n, int64_t d, bool strided) {
  constexpr int64_t batches = 2;
  const double tolerance = sizeof(T) == 4 ? 1e-5 : 1e-12;
  Buffer<T> A(batches, n, d, strided), b(batches, n, 1), w(batches, n, 1), penalty(batches, n, 1), x(batches, 1, d),
      v(batches, 1, d);
  A.fill(.8 / std::sqrt(d + 1.), .3 / std::sqrt(d + 1.)), b.fill(.5 / (n + 1), .7 / (n + 1)), w.fill(.4, 1),
      penalty.fill(.1, .1), x.fill(.5, .6), v.fill(1, 0);
  Buffer<double> statistics(batches, 1, RegressionStatistics::count), vector(batches, 1, d),
      model(batches, 1, RegressionModel::count);
  Buffer<T> products(batches, n, 1), logits(batches, n, 1), rows(batches, RegressionRows::count, n),
      gradient(batches, 1, d), noise(batches, 1, d), hessian(batches, d, d);

  RegressionParameters p;
  p.kind = kind, p.form = form, p.rows = n, p.columns = d, p.rank = 1, p.sizes[0] = p.batches = batches;
  p.curvature = Curvature::full, p.steps_count = 1;
  p.A = A.template view<const void*>(false), p.b = b.template view<const void*>(true);
  p.row_weight = w.template view<const void*>(true), p.penalty_weight = penalty.template view<const void*>(true);
  p.x = x.template view<const void*>(true), p.v = v.template view<const void*>(true);
  p.statistics = statistics.view<void*>(true), p.vector = vector.view<void*>(true);

  std::vector<Reference> reference;
  for (int64_t i = 0; i < batches; ++i) reference.emplace_back(A, b, w, penalty, x, i, kind, form);
  const auto scale = [&](int64_t i) { return statistics.at(i, 0, RegressionStatistics::log_scale); };
  const auto check_loss = [&](const char* what) {
    for (int64_t i = 0; i < batches; ++i)
      expect_close(what, {statistics.at(i, 0, RegressionStatistics::loss) * std::exp(scale(i))}, {reference[i].loss},
                   tolerance);
  };

  RUN(evaluate, p);
  check_loss("loss");
  for (int64_t i = 0; i < batches; ++i)
    expect_close("gradient", scaled(vector.values(i), scale(i)), reference[i].gradient, tolerance, reference[i].size);

  RUN(product, p);
  for (int64_t i = 0; i < batches; ++i) {
    const Doubles H = reference[i].hessian(A, i);
    Doubles expected(d);
    for (int64_t j = 0; j < d; ++j)
      for (int64_t k = 0; k < d; ++k) expected[j] += H[j * d + k] * v.at(i, 0, k);
    expect_close("product", scaled(vector.values(i), scale(i)), expected, tolerance * 4, reference[i].size);
  }

  Buffer<T> none(batches, n, 1), square_matrix(batches, d, d);
  none.fill(0, 0);
  RegressionParameters without = p;
  without.penalty_weight = {}, without.curvature = Curvature::gauss_newton;
  without.hessian = square_matrix.template view<void*>(false);
  RUN(gauss_newton, without);
  for (int64_t i = 0; i < batches; ++i) {
    const Reference r(A, b, w, none, x, i, kind, form);
    expect_close("gradient beside Gauss-Newton", scaled(vector.values(i), scale(i)), r.gradient, tolerance, r.size);
    expect_close("Gauss-Newton", scaled(square_matrix.values(i), scale(i)), r.hessian(A, i, 0), tolerance * 4, r.size);
  }
  RUN(evaluate, p);  // statistics with the penalty, for what follows

  p.v = p.x, p.products = logits.template view<void*>(true);
  RUN(matvec, p);
  for (int64_t i = 0; i < batches; ++i) expect_close("A x", logits.values(i), reference[i].z, tolerance);

  p.logits = logits.template view<const void*>(true);
  RUN(statistics, p);
  check_loss("loss of logits");

  p.saved_statistics = statistics.view<const void*>(true), p.row_values = rows.template view<void*>(false);
  RUN(rows, p);
  for (int64_t i = 0; i < batches; ++i) {
    const double half = form == Form::normalized ? 0 : scale(i) / 2;
    const auto row = [&](int64_t k) {
      Doubles out;
      for (int64_t j = 0; j < n; ++j) out.push_back(rows.at(i, k, j));
      return out;
    };
    const Reference& r = reference[i];
    expect_close("gradient's rows", scaled(row(RegressionRows::gradient), 2 * half), r.gradient_rows, tolerance,
                 r.size);
    expect_close("diagonal", scaled(row(RegressionRows::diagonal), 2 * half), r.diagonal, tolerance);
    expect_close("rest", scaled(row(RegressionRows::diagonal_rest), 2 * half), r.rest, tolerance * 4, r.size);
    expect_close("p", scaled(row(RegressionRows::p), half), r.p, tolerance);
    expect_close("q", scaled(row(RegressionRows::q), half), r.q, tolerance);
  }

  p.resident_rows = rows.template view<const void*>(false), p.direction = p.logits;
  p.model = model.view<void*>(true);
  RUN(model, p);
  for (int64_t i = 0; i < batches; ++i) {
    double slope = 0, size = 0;
    for (int64_t j = 0; j < n; ++j) {
      slope += rows.at(i, RegressionRows::gradient, j) * logits.at(i, j);
      size += std::fabs(rows.at(i, RegressionRows::gradient, j) * logits.at(i, j));
    }
    expect_close("slope", {model.at(i, 0, RegressionModel::slope), size}, {slope, size}, 1e-12);
  }

  p.gradient = gradient.template view<void*>(true), p.hessian = hessian.template view<void*>(false);
  p.noise = noise.template view<void*>(true);
  RUN(curvature, p);
  for (int64_t i = 0; i < batches; ++i) {
    expect_close("gradient of rows", scaled(gradient.values(i), scale(i)), reference[i].gradient, tolerance,
                 reference[i].size);
    expect_close("Hessian", scaled(hessian.values(i), scale(i)), reference[i].hessian(A, i), tolerance * 4,
                 reference[i].size);
  }
  ++cases;
}

}  // namespace

int main() {
  for (const Kind kind : {Kind::exp, Kind::cosh, Kind::sinh})
    for (const Form form : {Form::rescaled, Form::normalized, Form::plain})
      for (const auto& [n, d] : {std::pair<int64_t, int64_t>{2, 1}, {9, 3}, {40, 8}, {130, 17}, {700, 5}, {1100, 50}})
        for (const bool strided : {false, true})
          check<float>(kind, form, n, d, strided), check<double>(kind, form, n, d, strided);
  // Rows across several warps of a GPU, and longer than a block reads at once.
  for (const int64_t d : {int64_t{132}, int64_t{300}})
    check<float>(Kind::exp, Form::rescaled, 70, d, false), check<double>(Kind::sinh, Form::normalized, 70, d, false);
  check<float>(Kind::cosh, Form::normalized, 20, 1028, false), check<double>(Kind::exp, Form::plain, 20, 516, false);
  check<float>(Kind::exp, Form::rescaled, 9, 1030, true);
#if defined(RESCALED_TWIN)
  const char* const which = std::getenv("RESCALED_TWIN_REVERSE") ? "CUDA twin, reversed" : "CUDA twin";
#else
  const char* const which = cpu_isa_name();
#endif
  std::printf("ok: %d cases, %s, worst error %.2f of the tolerance\n", cases, which, worst);
}
