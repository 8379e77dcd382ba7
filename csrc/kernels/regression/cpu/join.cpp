// SPDX-License-Identifier: BSD-3-Clause
// Parts of a problem's rows joined. A few numbers: compiled once, for every processor alike, so that all processes that
// join the same parts come to the same bits.
#define RESCALED_ISA portable
#define RESCALED_INLINE static inline
#include "sum_parts.h"

namespace rescaled {

using namespace portable;

namespace {

// The part in whose units and around whose center all are joined: of those with rows the heaviest by b, whose center
// is the unit that fits most.
int64_t reference_of(const double* parts, int64_t count, int64_t stride) {
  int64_t best = -1;
  double most = -1;
  for (int64_t i = 0; i < count; ++i) {
    const Sums s = read_sums(parts + i * stride);
    if (s.empty || (best >= 0 && !(s.target_square > most))) continue;
    best = i, most = s.target_square;
  }
  return best;
}

}  // namespace

void join_regression_parts(const double* parts, int64_t count, int64_t stride, int64_t columns, Form form,
                           double* statistics, double* gradient) {
  using Part = RegressionPart;
  const int64_t reference = reference_of(parts, count, stride);
  Sums all;
  double exponent = 0;
  bool first = true;
  for (int64_t i = 0; i < count; ++i)
    if (const Sums s = read_sums(parts + i * stride); !s.empty) {
      exponent = first || s.exponent > exponent ? s.exponent : exponent;
      first = false;
    }
  if (reference >= 0) {
    const Sums s = read_sums(parts + reference * stride);
    all.empty = false, all.exponent = exponent;
    // Of the plain form known before: of rows that all vanish beside others there may be no such number.
    all.center = form == Form::plain ? power_of_two(-exponent) : s.center * power_of_two(s.exponent - exponent);
  }
  const auto each = [&](auto f) {
    for (int64_t i = 0; i < count; ++i) {
      const double* const of = parts + i * stride;
      Sums s = read_sums(of);
      if (!s.empty) f(s, power_of_two(s.exponent - exponent), of + Part::count);
    }
  };
  each([&](Sums& s, double, const double*) {
    rescale(s, exponent);
    if (form == Form::plain) s.center = all.center;
    recenter(s, all.center);
    join_sums(all, s);
  });
  write_statistics(all, form, statistics);
  if (gradient == nullptr) return;
  const Totals t = totals_of(all, form);
  const double penalty = unscaled_factor(all, form);
  for (int64_t j = 0; j < columns; ++j) {
    double sum[Part::vectors] = {};
    each([&](const Sums& s, double factor, const double* vectors) {
      const auto at = [&](int64_t k) { return vectors[k * columns + j]; };
      const double target = at(Part::vector_target) * factor,
                   by = form == Form::plain ? 0 : s.center * factor - all.center;  // as recenter moves the sums
      sum[Part::vector_lead] += scaled(at(Part::vector_lead), Degree::quadratic, factor) + by * target;
      sum[Part::vector_target] += target, sum[Part::vector_plain] += at(Part::vector_plain) * factor;
      sum[Part::vector_penalty] += at(Part::vector_penalty);
    });
    const double value =
        form == Form::plain ? sum[Part::vector_lead]
                            : gradient_at(t, sum[Part::vector_lead], sum[Part::vector_target], sum[Part::vector_plain]);
    gradient[j] = sum[Part::vector_penalty] == 0 ? value : value + penalty * sum[Part::vector_penalty];
  }
}

}  // namespace rescaled
