// SPDX-License-Identifier: BSD-3-Clause
// The row side of a block of rows: u and its derivative from the logits, the sums, and the coefficients with which the
// rows of A are added up.
#pragma once
#include "../../cpu/arena.h"
#include "../../cpu/convert.h"
#include "../../phi.h"
#include "../sums.h"

namespace rescaled::RESCALED_ISA {
namespace {

constexpr int64_t kMostRows = 512;  // of a block

// The vectors of one problem.
struct RowInputs {
  InputView b, row_weight, penalty_weight;
  RowInputs(const RegressionParameters& p, int64_t batch)
      : b(matrix(p.b, p, batch)),
        row_weight(matrix(p.row_weight, p, batch)),
        penalty_weight(matrix(p.penalty_weight, p, batch)) {}
};

template <class T>
struct RowBlock {
  // [kMostRows]; beyond the last row b, the weights, u and du are zero, z and t repeat it.
  T *z, *t, *b, *row_weight, *penalty_weight, *u, *du;
  T* coefficients;  // [kMostVectors][kMostRows]
  static constexpr int kMostVectors = 7;
  explicit RowBlock(Arena& arena) {
    for (T** to : {&z, &t, &b, &row_weight, &penalty_weight, &u, &du}) *to = arena.take<T>(kMostRows);
    coefficients = arena.take<T>(kMostVectors * kMostRows);
  }
  T* coefficient(int i) const { return coefficients + i * kMostRows; }
};

// Rows of a block. Consecutive ones lie far apart, in eight streams: so many pages are read at once, which the hardware
// prefetches 1.5 to 2 times as fast as one stream (measured, d 16 to 256).
constexpr int64_t kStreams = 8;
struct Block {
  int64_t first, count, step, apart;
  int64_t row(int64_t r) const { return first + r / kStreams * step + r % kStreams * apart; }
};

// Elements `first` to `first + count` of a vector, then zeros up to `padded`.
template <class T>
static __attribute__((noinline)) void load_vector(InputView m, int64_t first, int64_t count, int64_t padded, T* to) {
  with_type(m.dtype, m.data, [&](auto* from) {
    for (int64_t i = 0; i < count; ++i) to[i] = static_cast<T>(value_of(from[(first + i) * m.row]));
  });
  for (int64_t i = count; i < padded; ++i) to[i] = T(0);
}
// The elements of a block's rows.
template <class T>
static __attribute__((noinline)) void load_rows(InputView m, Block b, int64_t padded, T* to) {
  if (b.apart == 1) return load_vector<T>(m, b.first, b.count, padded, to);
  with_type(m.dtype, m.data, [&](auto* from) {
    const auto* start = from + b.first * m.row;
    const int64_t apart = b.apart * m.row;
    for (int64_t i = 0; i < b.count; i += kStreams, start += m.row)
      RESCALED_UNROLL for (int k = 0; k < kStreams; ++k) to[i + k] = static_cast<T>(value_of(start[k * apart]));
  });
  for (int64_t i = b.count; i < padded; ++i) to[i] = T(0);
}
template <class T>
static __attribute__((noinline)) void load_targets(const RowInputs& in, Block b, int64_t padded, RowBlock<T>& r) {
  load_rows<T>(in.b, b, padded, r.b);
  if (in.row_weight)
    load_rows<T>(in.row_weight, b, padded, r.row_weight);
  else
    for (int64_t i = 0; i < padded; ++i) r.row_weight[i] = T(1);
  if (in.penalty_weight) load_rows<T>(in.penalty_weight, b, padded, r.penalty_weight);
}

template <class T>
RESCALED_INLINE T horizontal_sum(Vec<T> x) {
  T sum = 0;
  RESCALED_UNROLL for (int i = 0; i < kLanes<T>; ++i) sum += x[i];
  return sum;
}
template <class T>
RESCALED_INLINE T largest_of(const T* x, int64_t padded, bool absolute_value) {
  Vec<T> top = load(x);
  if (absolute_value) top = absolute(top);
  for (int64_t i = kLanes<T>; i < padded; i += kLanes<T>) {
    const Vec<T> y = load(x + i);
    top = maximum(absolute_value ? absolute(y) : y, top);
  }
  T most = top[0];
  RESCALED_UNROLL for (int i = 1; i < kLanes<T>; ++i) most = top[i] > most ? top[i] : most;
  return most;
}

// The exponent that keeps u (and in the plain form b) of these rows at most about 1; -inf or NaN where there is none.
template <class T>
static __attribute__((noinline)) double exponent_of(const RegressionParameters& p, const RowBlock<T>& r,
                                                    int64_t padded) {
  double top = double{largest_of<T>(r.z, padded, p.kind != Kind::exp)} * kLog2e;
  if (p.form == Form::plain) {
    const double b = std::log2(double{largest_of<T>(r.b, padded, true)});
    top = b > top ? b : top;
  }
  return __builtin_ceil(top);
}

// u and du of the rows, scaled by 2^-exponent; zero beyond `count`.
template <class T, bool kTwoSided>
static __attribute__((noinline)) void fill_phi(Kind kind, double exponent, int64_t count, int64_t padded,
                                               RowBlock<T>& r) {
  const Vec<T> scale = broadcast(static_cast<T>(exponent));
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    Vec<T> n, f;
    reduce_natural<T>(load(r.z + i), n, f);
    if constexpr (kTwoSided) {
      Vec<T> even, odd;
      two_sided<T>(n, f, -scale, even, odd);
      store(r.u + i, kind == Kind::cosh ? even : odd);
      store(r.du + i, kind == Kind::cosh ? odd : even);
    } else {
      store(r.u + i, scale_by_power<T>(exp2_fraction<T>(f), n - scale));
    }
  }
  if constexpr (!kTwoSided) std::memcpy(r.du, r.u, sizeof(T) * padded);
  for (int64_t i = count; i < padded; ++i) r.u[i] = r.du[i] = T(0);
}

// The unit that fits these rows best: near the solution u is close to unit b, in any part of the rows.
template <class T>
static __attribute__((noinline)) double predicted_unit(const RegressionParameters& p, double exponent, int64_t padded,
                                                       const RowBlock<T>& r) {
  if (p.form == Form::plain) return power_of_two(-exponent);
  double product = 0, square = 0;
  for (int64_t i = 0; i < padded; ++i) {
    product += double{r.row_weight[i]} * double{r.u[i]} * double{r.b[i]};
    square += double{r.row_weight[i]} * double{r.b[i]} * double{r.b[i]};
  }
  // Beyond 1e30 (a tiny b) float would overflow; any prediction is right, this one only centers nothing.
  const double unit = product / square;
  return square > 0 && std::fabs(unit) < 1e30 ? unit : 0;
}

// Adds a block to the sums, and fills the coefficients of the vectors; with gauss_newton also those of the Gram, after
// them. That one leaves the penalty out.
template <class T, Vectors kVectors>
static __attribute__((noinline)) void add_rows(const RegressionParameters& p, int64_t padded, RowBlock<T>& r, Sums& s) {
  constexpr bool product = kVectors == Vectors::product || kVectors == Vectors::plain_product,
                 gradient = kVectors == Vectors::gradient || kVectors == Vectors::gauss_newton;
  // In the plain form beyond the largest float only where b is zero so far.
  const Vec<T> center = broadcast(static_cast<T>(s.center < 1e38 ? s.center : 1e38)), zero = {};
  const bool full = p.curvature == Curvature::full;
  Vec<T> u_sum = zero, absolute_sum = zero, target = zero, residual = zero, square = zero, target_square = zero,
         penalty = zero, p_t = zero, lead_t = zero, target_t = zero;
  for (int64_t i = 0; i < padded; i += kLanes<T>) {
    const Vec<T> u = load(r.u + i), du = load(r.du + i), b = load(r.b + i), w = load(r.row_weight + i);
    const Vec<T> c = u - center * b, e = w * c, wb = w * b;
    u_sum += u, absolute_sum += absolute(u), target += e * b, residual += e * c, square += w * u * u,
        target_square += wb * b;
    if constexpr (kVectors == Vectors::plain_gradient || gradient) store(r.coefficient(0) + i, du * e);
    if constexpr (gradient) store(r.coefficient(1) + i, du * wb), store(r.coefficient(2) + i, du);
    if constexpr (kVectors == Vectors::gauss_newton) store(r.coefficient(3) + i, w * du * du);
    if constexpr (product) {
      const Vec<T> t = load(r.t + i), curved = w * du * du;
      store(r.coefficient(0) + i, (full ? curved + u * e : curved) * t);
      if constexpr (kVectors == Vectors::product) {
        const Vec<T> lead = du * e, aim = du * wb;
        store(r.coefficient(1) + i, full ? u * wb * t : zero), store(r.coefficient(2) + i, full ? u * t : zero);
        store(r.coefficient(3) + i, lead), store(r.coefficient(4) + i, aim), store(r.coefficient(5) + i, du);
        p_t += du * t, lead_t += lead * t, target_t += aim * t;
      }
    }
    if (p.penalty_weight) {
      const Vec<T> z = load(r.z + i), weight = load(r.penalty_weight + i), part = weight * weight;
      penalty += part * z * z;
      if constexpr (kVectors != Vectors::none)
        store(r.coefficient(kVectorCount<kVectors>) + i, part * (product ? load(r.t + i) : z));
    }
  }
  const auto add = [](double& sum, Vec<T> part) { sum += double{horizontal_sum<T>(part)}; };
  add(s.u, u_sum), add(s.absolute, absolute_sum), add(s.target, target), add(s.residual, residual);
  add(s.square, square), add(s.target_square, target_square), add(s.penalty, penalty);
  add(s.p, p_t), add(s.q_lead, lead_t), add(s.q_target, target_t);
}

// Makes the sums ready for a block: raises the exponent, fills u and du, sets the center. Returns by what the exponent
// was raised (0: not), so that the vectors can follow.
template <class T>
static __attribute__((noinline)) double begin_rows(const RegressionParameters& p, int64_t count, int64_t padded,
                                                   RowBlock<T>& r, Sums& s) {
  const double largest = double{largest_of<T>(r.z, padded, true)};
  s.largest = largest > s.largest || largest != largest ? largest : s.largest;
  const double exponent = exponent_of<T>(p, r, padded);
  double raised = 0;
  if (s.empty) {
    s.exponent = exponent - exponent == 0 ? exponent : 0;
  } else if (exponent > s.exponent && exponent - exponent == 0) {
    raised = exponent - s.exponent;
    rescale(s, exponent);
  }
  if (p.kind == Kind::exp)
    fill_phi<T, false>(p.kind, s.exponent, count, padded, r);
  else
    fill_phi<T, true>(p.kind, s.exponent, count, padded, r);
  if (s.empty) s.center = predicted_unit<T>(p, s.exponent, padded, r);
  s.empty = false;
  return raised;
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
