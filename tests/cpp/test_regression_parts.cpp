// SPDX-License-Identifier: BSD-3-Clause
// Parts of a problem's rows, joined, against a pass over all rows: near the solution, where the loss is 1e-18 of what
// it is the difference of, with parts of very different size, and one without rows.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../../csrc/kernels/cpu/isa.h"
#include "../../csrc/kernels/regression/parts.h"

using namespace rescaled;

namespace {

using Doubles = std::vector<double>;
using Part = RegressionPart;
using Statistics = RegressionStatistics;

double worst = 0;

void expect_close(const char* what, double found, double expected, double tolerance, double size = 0) {
  const double error = std::fabs(found - expected) / std::fmax(std::fabs(expected), size) / tolerance;
  if (found == expected) return;
  worst = std::fmax(worst, error);
  if (error <= 1) return;
  std::printf("FAILED: %s: %.17g, not %.17g\n", what, found, expected);
  std::exit(1);
}

void run(const RegressionProgram& program, RegressionParameters& p) {
  const auto allocate = [](int64_t bytes) { return std::aligned_alloc(64, (bytes / 64 + 1) * 64); };
  p.workspace = allocate(program.workspace_bytes);
  for (int i = 0; i < program.count; ++i) {
    void* const scratch = allocate(program.steps[i].scratch_bytes);
    for (int64_t task = 0; task < program.steps[i].tasks; ++task) program.steps[i].run(p, task, task + 1, scratch);
    std::free(scratch);
  }
  std::free(p.workspace);
}

Input vector(const Doubles& v, int64_t first = 0) { return {v.data() + first, DType::float64, 1, 0, {}}; }
Output output(Doubles& v, int64_t row, int64_t column) { return {v.data(), DType::float64, row, column, {}}; }

// Rows from `spread` on have logits larger by `jump`.
void check(Kind kind, Form form, bool weighted, double noise, double jump) {
  constexpr int64_t n = 1500, d = 6, spread = 900;
  const auto random = [] { return std::rand() / (RAND_MAX + 1.0) * 2 - 1; };
  Doubles A(n * d), b(n), x(d), w(n), penalty(n), z(n);
  for (double& v : x) v = random();
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < d; ++j) A[i * d + j] = j == 0 ? (i < spread ? 0 : jump / x[0]) : random();
    for (int64_t j = 0; j < d; ++j) z[i] += A[i * d + j] * x[j];
    b[i] = kind == Kind::exp ? std::exp(z[i]) : kind == Kind::cosh ? std::cosh(z[i]) : std::sinh(z[i]);
    sum += b[i];
  }
  for (int64_t i = 0; i < n; ++i) {
    b[i] *= (1 + noise * random()) / (form == Form::plain ? 1 : sum);
    w[i] = 1.5 + random(), penalty[i] = 1e-9 * random();
  }
  const auto rows = [&](int64_t begin, int64_t end) {
    RegressionParameters p;
    p.kind = kind, p.form = form, p.rows = end - begin, p.columns = d, p.steps_count = 1;
    p.A = {A.data() + begin * d, DType::float64, d, 1, {}};
    p.b = vector(b, begin), p.x = vector(x), p.logits = vector(z, begin);
    if (weighted) p.row_weight = vector(w, begin), p.penalty_weight = vector(penalty, begin);
    return p;
  };

  Doubles whole(Statistics::count), gradient(d), joined(Statistics::count), joined_gradient(d);
  RegressionParameters all = rows(0, n);
  all.statistics = output(whole, 1, 0), all.vector = output(gradient, 1, 0);
  run(regression_cpu_kernels().evaluate(all), all);

  constexpr int64_t cuts[] = {0, 3, 3, 850, n}, count = 4, stride = Part::count + Part::vectors * d;
  Doubles parts(count * stride), trials(count * Part::count);
  for (int64_t i = 0; i < count; ++i) {
    Doubles numbers(Part::count), vectors(Part::vectors * d), trial(Part::count);
    numbers[Part::empty] = trial[Part::empty] = 1;
    if (cuts[i] < cuts[i + 1]) {
      RegressionParameters p = rows(cuts[i], cuts[i + 1]);
      p.statistics = output(numbers, 1, 0), p.vector = output(vectors, d, 1);
      run(regression_part_cpu_kernels().evaluate(p), p);
      p.statistics = output(trial, Part::count, 1);
      run(regression_part_cpu_kernels().statistics(p), p);
    }
    std::copy(numbers.begin(), numbers.end(), parts.begin() + i * stride);
    std::copy(vectors.begin(), vectors.end(), parts.begin() + i * stride + Part::count);
    std::copy(trial.begin(), trial.end(), trials.begin() + i * Part::count);
  }
  join_regression_parts(parts.data(), count, stride, d, form, joined.data(), joined_gradient.data());
  // Residuals are noise of u and its sum, which are rounded as the logits are, and as u cancel.
  const double tolerance = 3e-14 * (1 + jump) * whole[Statistics::spread] / noise;
  expect_close("loss", joined[Statistics::loss], whole[Statistics::loss], tolerance);
  expect_close("square", joined[Statistics::square], whole[Statistics::square], 1e-12);
  expect_close("magnitude", joined[Statistics::magnitude], whole[Statistics::magnitude], 1e-12);
  expect_close("log_sum", joined[Statistics::log_sum], whole[Statistics::log_sum], 1e-12, 1);
  expect_close("largest", joined[Statistics::largest], whole[Statistics::largest], 1e-15);
  double most = 0;
  for (const double g : gradient) most = std::fmax(most, std::fabs(g));
  for (int64_t j = 0; j < d; ++j) expect_close("gradient", joined_gradient[j], gradient[j], tolerance, most);

  join_regression_parts(trials.data(), count, Part::count, 0, form, joined.data(), nullptr);
  expect_close("loss by the logits", joined[Statistics::loss], whole[Statistics::loss], tolerance);
}

}  // namespace

int main() {
  for (const Kind kind : {Kind::exp, Kind::cosh, Kind::sinh})
    for (const Form form : {Form::rescaled, Form::normalized, Form::plain})
      for (const bool weighted : {false, true})
        for (const double jump : {0., 30., 300.}) {
          check(kind, form, weighted, 1e-3, jump);
          check(kind, form, weighted, 1e-9, jump);
        }
  // No rows anywhere.
  Doubles none(3 * Part::count), statistics(Statistics::count);
  for (int64_t i = 0; i < 3; ++i) none[i * Part::count + Part::empty] = 1;
  join_regression_parts(none.data(), 3, Part::count, 0, Form::plain, statistics.data(), nullptr);
  expect_close("loss of no rows", statistics[Statistics::loss], 0, 1);
  std::printf("ok: %s, worst error %.2f of the tolerance\n", cpu_isa_name(), worst);
}
