// SPDX-License-Identifier: BSD-3-Clause
// What one pass over rows adds up, and what it makes of the sums: docs/math.md (7). Everything is scaled by a power of
// two that grows with the largest row seen, so that nothing overflows and a change of scale rounds nothing; and
// centered by a predicted unit, so that nothing cancels near the solution.
//
// For CPU and CUDA: whoever includes it brings RESCALED_ISA and RESCALED_INLINE (../cpu/simd.h, ../cuda/scalar.cuh).
#pragma once
#include <cmath>

#include "../element.h"
#include "parameters.h"

namespace rescaled::RESCALED_ISA {
namespace {

// 2^k, 0 below the normal numbers.
RESCALED_INLINE double power_of_two(double k) {
  return k < -1022  ? 0
         : k > 1023 ? __builtin_inf()
                    : bits_as<double>(static_cast<uint64_t>(1023 + static_cast<int64_t>(k)) << 52);
}

// By what power of 2^-exponent a sum is scaled.
enum class Degree { none, linear, quadratic };
RESCALED_INLINE double scaled(double x, Degree degree, double factor) {
  return degree == Degree::none ? x : degree == Degree::linear ? x * factor : x * factor * factor;
}

// Of rows seen so far. u, du, e = row_weight (u - center b): in units of 2^exponent.
struct Sums {
  bool empty = true;
  double exponent = 0, largest = 0, center = 0;
  double u = 0, absolute = 0;              // sums of u, |u|
  double target = 0, residual = 0;         // <e, b>, <e, u - center b>
  double square = 0, target_square = 0;    // sums of row_weight u^2, row_weight b^2
  double penalty = 0;                      // sum of (penalty_weight z)^2
  double p = 0, q_lead = 0, q_target = 0;  // along t: <du, t>, <du e, t>, <du row_weight b, t>
};

RESCALED_INLINE void rescale(Sums& s, double to) {
  const double f = power_of_two(s.exponent - to), g = f * f;
  s.center *= f, s.u *= f, s.absolute *= f, s.target *= f, s.p *= f, s.q_target *= f;
  s.residual *= g, s.square *= g, s.q_lead *= g;
  s.exponent = to;
}

// Adds sums of other rows, of the same exponent and center.
RESCALED_INLINE void join_sums(Sums& s, const Sums& other) {
  s.u += other.u, s.absolute += other.absolute, s.target += other.target, s.residual += other.residual;
  s.square += other.square, s.target_square += other.target_square, s.penalty += other.penalty;
  s.p += other.p, s.q_lead += other.q_lead, s.q_target += other.q_target;
  if (other.largest > s.largest || other.largest != other.largest) s.largest = other.largest;
}

// Vectors that a pass adds up, sums over rows of a coefficient times the row of A.
enum class Vectors {
  none,
  gradient,        // du e | du row_weight b | du
  plain_gradient,  // du e
  gauss_newton,    // as gradient, beside A^T diag(row_weight du^2) A
  product,         // (row_weight du^2 + u e) t | row_weight u b t | u t | du e | du row_weight b | du
  plain_product    // (row_weight du^2 + u e) t
};
template <Vectors kVectors>
inline constexpr int kVectorCount = kVectors == Vectors::none                                            ? 0
                                    : kVectors == Vectors::gradient || kVectors == Vectors::gauss_newton ? 3
                                    : kVectors == Vectors::product                                       ? 6
                                                                                                         : 1;
template <Vectors kVectors>
RESCALED_INLINE Degree degree_of(int i) {
  constexpr int quadratic_too = kVectors == Vectors::product ? 3 : 0;
  return i == 0 || i == quadratic_too ? Degree::quadratic : Degree::linear;
}
// The vector whose coefficient is that of vector i with e replaced by row_weight b, or -1.
template <Vectors kVectors>
RESCALED_INLINE int target_of(int i) {
  if (kVectors == Vectors::gradient || kVectors == Vectors::gauss_newton) return i == 0 ? 1 : -1;
  if (kVectors == Vectors::product) return i == 0 ? 1 : i == 3 ? 4 : -1;
  return -1;
}

// Moves the center: e' = e + (center - to) row_weight b, so that du e gains as much of du row_weight b.
RESCALED_INLINE void recenter(Sums& s, double to) {
  const double by = s.center - to;
  s.residual += 2 * by * s.target + by * by * s.target_square;
  s.target += by * s.target_square;
  s.q_lead += by * s.q_target;
  s.center = to;
}

// What the sums of all rows say, by the form.
struct Totals {
  double unit, offset;  // of the residual; unit - center
  double residual, beta,
      inner;  // <c, row_weight c>; of the gradient's rows; beta in units of u (normalized: alpha beta)
  double square;
  double factor;  // by which quadratic sums are divided: sum u squared if normalized
};
RESCALED_INLINE Totals totals_of(const Sums& s, Form form) {
  Totals t{1, 0, 0, 0, 0, 0, 1};
  if (s.empty) return t;
  t.unit = form == Form::plain ? power_of_two(-s.exponent) : s.u;
  t.offset = form == Form::plain ? 0 : t.unit - s.center;
  t.residual = s.residual - 2 * t.offset * s.target + t.offset * t.offset * s.target_square;
  const double target = s.target - t.offset * s.target_square;  // <c, row_weight b>
  t.factor = form == Form::normalized ? s.u * s.u : 1;
  t.inner = form == Form::rescaled ? target : form == Form::normalized ? t.residual / s.u + target : 0;
  t.beta = form == Form::normalized ? t.inner / s.u : t.inner;
  t.square = form == Form::rescaled ? s.target_square : form == Form::normalized ? s.square / t.factor : 0;
  return t;
}

// Factor of what is not scaled (the penalty) beside what is. Beyond e^600 the difference does not matter.
RESCALED_INLINE double unscaled_factor(const Sums& s, Form form) {
  if (form == Form::normalized) return 1;
  const double exponent = -2 * s.exponent;
  return power_of_two(exponent < 866 ? exponent : 866);
}

RESCALED_INLINE void write_statistics(const Sums& s, Form form, double* to) {
  using Statistics = RegressionStatistics;
  const Totals t = totals_of(s, form);
  const bool normalized = form == Form::normalized;
  const double penalty = s.penalty == 0 ? 0 : .5 * s.penalty * unscaled_factor(s, form);
  const double unit = normalized ? 1 : t.unit;
  to[Statistics::log_scale] = normalized ? 0 : 2 * s.exponent * kLn2;
  to[Statistics::loss] = .5 * t.residual / t.factor + penalty;
  to[Statistics::penalty] = penalty;
  to[Statistics::log_sum] = s.exponent * kLn2 + std::log(std::fabs(s.u));
  to[Statistics::sum_sign] = s.u > 0 ? 1 : s.u < 0 ? -1 : s.u;
  to[Statistics::unit] = unit;
  to[Statistics::beta] = t.beta;
  to[Statistics::square] = t.square;
  to[Statistics::magnitude] = s.square / t.factor + unit * unit * s.target_square;
  to[Statistics::spread] = s.absolute / std::fabs(s.u);
  to[Statistics::concentration] = s.square / (s.u * s.u);
  to[Statistics::largest] = s.largest;
}

// The gradient from the sums: (A^T du e - offset A^T du row_weight b - inner A^T du) / factor.
RESCALED_INLINE double gradient_at(const Totals& t, double lead, double target, double plain) {
  return (lead - t.offset * target - t.inner * plain) / t.factor;
}

// A number of the Hessian product, from the six vectors there and their products with t.
RESCALED_INLINE double product_at(const RegressionParameters& p, const Sums& s, const Totals& t, const double (&h)[6]) {
  const double curved = (h[0] - t.offset * h[1] - t.inner * h[2]) / t.factor;
  const double plain = h[5], target = h[4], lead = h[3] - t.offset * target;  // A^T du row_weight c
  if (p.form == Form::rescaled) return curved - plain * s.q_target - target * s.p + t.square * plain * s.p;
  const double lead_t = s.q_lead - t.offset * s.q_target;
  const bool full = p.curvature == Curvature::full;  // u + c = 2 c + unit b, u = c + unit b
  const double c = full ? 2 : 1, inner = full ? t.inner : 0;
  const double q = (c * lead + t.unit * target - inner * plain) / t.factor,
               q_t = (c * lead_t + t.unit * s.q_target - inner * s.p) / t.factor, along = s.p / t.unit;
  return curved - plain / t.unit * q_t - q * along + t.square * plain / t.unit * along;
}

// A^T p and A^T q of Gauss-Newton, from the gradient's vectors.
struct Sides {
  double p, q;
};
RESCALED_INLINE Sides sides_at(Form form, const Totals& t, double lead, double target, double plain) {
  if (form == Form::plain) return {0, 0};
  if (form == Form::rescaled) return {plain, target};
  return {plain / t.unit, (lead + (t.unit - t.offset) * target) / t.factor};
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
