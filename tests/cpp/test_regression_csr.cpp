// SPDX-License-Identifier: BSD-3-Clause
// Kernels of a sparse A: products against loops, and indices that lead outside, which must be found before they are
// followed (run under sanitizers: the arrays end where they end).
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/kernels/cpu/isa.h"
#include "../../csrc/kernels/regression/csr.h"

using namespace rescaled;

namespace {

using Doubles = std::vector<double>;

void run(const CsrProgram& program, CsrParameters& p) {
  const auto allocate = [](int64_t bytes) { return std::aligned_alloc(64, (bytes / 64 + 1) * 64); };
  p.workspace = allocate(program.workspace_bytes);
  for (int i = 0; i < program.count; ++i) {
    void* const scratch = allocate(program.steps[i].scratch_bytes);
    for (int64_t task = 0; task < program.steps[i].tasks; ++task) program.steps[i].run(p, task, task + 1, scratch);
    std::free(scratch);
  }
  std::free(p.workspace);
}

void fail(const char* what, int64_t columns) {
  std::printf("FAILED: %s, %lld columns\n", what, static_cast<long long>(columns));
  std::exit(1);
}
double random_number() { return std::rand() / (RAND_MAX + 1.0) * 2 - 1; }

template <class Index>
struct Problem {
  int64_t n, d, per_row;
  std::vector<Index> crow, col;
  Doubles values, b, x, rows, saved, weights, statistics, vector, products, gradient, hessian, noise, sums;
  int32_t wrong = 0;

  Problem(int64_t rows_count, int64_t columns, int64_t each) : n(rows_count), d(columns), per_row(each) {
    for (int64_t i = 0; i <= n; ++i) crow.push_back(static_cast<Index>(i * per_row));
    for (int64_t k = 0; k < n * per_row; ++k) {
      col.push_back(static_cast<Index>(std::rand() % d)), values.push_back(random_number());
    }
    for (int64_t i = 0; i < n; ++i) b.push_back(1.0 / static_cast<double>(n));
    for (int64_t j = 0; j < d; ++j) x.push_back(random_number());
    for (int64_t i = 0; i < RegressionRows::count * n; ++i) rows.push_back(random_number());
    for (int64_t i = 0; i < 3 * n; ++i) weights.push_back(random_number());
    saved.resize(RegressionStatistics::count), statistics.resize(RegressionStatistics::count);
    vector.resize(d), products.resize(n), gradient.resize(d), hessian.resize(d * d), noise.resize(d),
        sums.resize(3 * d);
  }
  CsrParameters parameters(Form form) {
    const auto of = [](const Doubles& v, int64_t row) { return Input{v.data(), DType::float64, row, 1, {}}; };
    const auto to = [](Doubles& v, int64_t row) { return Output{v.data(), DType::float64, row, 1, {}}; };
    CsrParameters p;
    p.form = form, p.rows = n, p.columns = d, p.nonzeros = static_cast<int64_t>(col.size());
    p.crow = crow.data(), p.col = col.data(), p.wide = sizeof(Index) == 8, p.wrong = &wrong;
    p.A = of(values, 1), p.b = of(b, 1), p.x = of(x, 1), p.v = of(x, 1), p.resident_rows = of(rows, n);
    p.saved_statistics = of(saved, 1), p.weights = of(weights, n), p.weights_count = 3;
    p.statistics = to(statistics, 1), p.vector = to(vector, 1), p.products = to(products, 1);
    p.gradient = to(gradient, 1), p.hessian = to(hessian, d), p.noise = to(noise, 1), p.sums = to(sums, d);
    return p;
  }
  // The number of kernels that say that an index is wrong.
  int refusals() {
    int count = 0;
    const CsrKernels& kernels = csr_cpu_kernels();
    for (const auto kernel :
         {kernels.evaluate, kernels.product, kernels.matvec, kernels.curvature, kernels.transposed}) {
      for (const Form form : {Form::normalized, Form::plain}) {
        wrong = 0;
        CsrParameters p = parameters(form);
        run(kernel(p), p);
        count += wrong;
      }
    }
    return count;
  }
  void check_products() {
    if (refusals() != 0) fail("right indices are refused", d);
    Doubles expected(n), along(3 * d);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t k = crow[i]; k < crow[i + 1]; ++k) {
        expected[i] += values[k] * x[col[k]];
        for (int64_t r = 0; r < 3; ++r) along[r * d + col[k]] += values[k] * weights[r * n + i];
      }
    for (int64_t i = 0; i < n; ++i)
      if (std::fabs(products[i] - expected[i]) > 1e-12) fail("A v", d);
    for (int64_t j = 0; j < 3 * d; ++j)
      if (std::fabs(sums[j] - along[j]) > 1e-12) fail("A^T weights", d);
  }
};

template <class Index>
void check(int64_t n, int64_t d, int64_t per_row) {
  Problem<Index>(n, d, per_row).check_products();
  const auto expect_refused = [&](const char* what, auto spoil) {
    Problem<Index> p(n, d, per_row);
    spoil(p);
    if (p.refusals() != 10) fail(what, d);
  };
  using P = Problem<Index>;
  const Index far = static_cast<Index>(INT32_MAX);
  for (const size_t at : {size_t{0}, static_cast<size_t>(n * per_row / 2), static_cast<size_t>(n * per_row - 1)}) {
    expect_refused("a column too large", [&](P& p) { p.col[at] = static_cast<Index>(d); });
    expect_refused("a column far away", [&](P& p) { p.col[at] = far; });
    expect_refused("a negative column", [&](P& p) { p.col[at] = -1; });
  }
  for (const size_t at : {size_t{0}, static_cast<size_t>(n / 2), static_cast<size_t>(n)}) {
    expect_refused("a row that begins far away", [&](P& p) { p.crow[at] = far; });
    expect_refused("a row that begins before all", [&](P& p) { p.crow[at] = -1; });
  }
  expect_refused("rows that end too early", [&](P& p) { p.crow[static_cast<size_t>(n)] -= 1; });
  expect_refused("rows that begin too late", [&](P& p) { p.crow[0] = 1; });
}

}  // namespace

int main() {
  // Few columns: one read, tiles. Many: two reads, pairs. Long rows: a block each.
  for (const auto& [n, d, per_row] : {std::array<int64_t, 3>{300, 5, 3}, {700, 1100, 4}, {3, 40, 9000}}) {
    check<int32_t>(n, d, per_row);
    check<int64_t>(n, d, per_row);
  }
  std::printf("ok: %s\n", cpu_isa_name());
  return 0;
}
