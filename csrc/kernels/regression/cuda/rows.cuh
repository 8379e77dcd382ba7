// SPDX-License-Identifier: BSD-3-Clause
// The row side on a warp, a row a lane: u and its derivative from the logits, the sums, and the coefficients with which
// the rows of A are added up (../cpu/rows.h does the same by vectors).
#pragma once
#include "../../cuda/scalar.cuh"
#include "../sums.h"
#include "lanes.cuh"

namespace rescaled {
namespace {

using cuda::Degree, cuda::Sums, cuda::Totals, cuda::Vectors, cuda::kVectorCount;

// The coefficients of a row in shared memory, the penalty's last.
template <Vectors kVectors>
constexpr int kCoefficients = kVectors == Vectors::product ? 8 : 4;
template <class S, Vectors kVectors>
struct alignas(16) Coefficients {
  S of[kCoefficients<kVectors>];
};

template <class S>
struct Row {
  S b = S(0), row_weight = S(0), penalty_weight = S(0);  // zero beyond the last row, with u and du
  bool there = false;
};

// Of a vector in the type of the arithmetic; float64 arithmetic reads float32 too.
template <class S>
RESCALED_DEVICE S number_at(InputView v, int64_t i) {
  if (sizeof(S) == 8 && v.dtype == DType::float32) return static_cast<S>(static_cast<const float*>(v.data)[i * v.row]);
  return static_cast<const S*>(v.data)[i * v.row];
}

// The vectors of one problem, by rows.
template <class S>
struct RowInputs {
  InputView b, row_weight, penalty_weight;
  int64_t rows;
  RESCALED_MEMBER RowInputs(const RegressionParameters& p, int64_t batch)
      : b(matrix(p.b, p, batch)),
        row_weight(matrix(p.row_weight, p, batch)),
        penalty_weight(matrix(p.penalty_weight, p, batch)),
        rows(p.rows) {}
  RESCALED_MEMBER Row<S> load(int64_t i) const {
    Row<S> row;
    row.there = i < rows;
    if (!row.there) return row;
    row.b = number_at<S>(b, i), row.row_weight = row_weight ? number_at<S>(row_weight, i) : S(1);
    if (penalty_weight) row.penalty_weight = number_at<S>(penalty_weight, i);
    return row;
  }
};

// u, du = phi(z), phi'(z) in units of 2^exponent; NaN where z is not finite.
template <class S>
RESCALED_DEVICE void phi_of(Kind kind, S z, S exponent, S& u, S& du) {
  S n, f;
  cuda::reduce_natural<S>(z, n, f);
  if (kind == Kind::exp) {
    u = du = cuda::scale_by_power<S>(cuda::exp2_fraction<S>(f), n - exponent);
  } else {
    S even, odd;
    cuda::two_sided<S>(n, f, -exponent, even, odd);
    u = kind == Kind::cosh ? even : odd, du = kind == Kind::cosh ? odd : even;
  }
  if (f != f) u = du = f;  // scaling by the bits of a NaN may have made it a number
}

// Sums of the rows of one lane; exponent and center are the warp's.
template <class S, Vectors kVectors>
struct RowSums {
  const RegressionParameters& p;
  Sums sums;
  S exponent = S(0), center = S(0);
  RESCALED_MEMBER explicit RowSums(const RegressionParameters& parameters) : p(parameters) {}

  // What keeps u (and in the plain form b) at most about 1, of a row, as a power of two.
  RESCALED_MEMBER S exponent_of(S z, S b) const {
    const S top = (p.kind == Kind::exp ? z : absolute(z)) * S(kLog2e);
    if (p.form != Form::plain) return top;
    return greater(top, natural_log(absolute(b)) * S(kLog2e));
  }
  // Raises the exponent to what the largest of the tile needs, if that is a number. Returns by what: 0, mostly. In the
  // first tile it may fall.
  RESCALED_MEMBER double raise(S top, bool first) {
    if (!first && !any_lane(top > exponent && top - top == S(0))) return 0;
    const double wanted = ceil(static_cast<double>(largest_over_warp(top)));
    const bool finite = wanted - wanted == 0;
    double by = 0;
    if (first)
      sums.exponent = finite ? wanted : 0;
    else if (finite && wanted > sums.exponent)
      by = wanted - sums.exponent, cuda::rescale(sums, wanted);
    exponent = static_cast<S>(sums.exponent), set_center(sums.center);
    return by;
  }
  // Rounded to S, so that what is subtracted row by row is what the sums are corrected for.
  RESCALED_MEMBER void set_center(double to) {
    center = static_cast<S>(to < 1e38 ? to : 1e38);
    sums.center = static_cast<double>(center);
  }
  // The unit that fits the first tile best, from its sums <row_weight u, b> and <row_weight b, b>.
  RESCALED_MEMBER void predict(double product, double square) {
    if (p.form == Form::plain) return set_center(cuda::power_of_two(-sums.exponent));
    product = sum_between(product, 1), square = sum_between(square, 1);
    const double unit = product / square;
    set_center(square > 0 && fabs(unit) < 1e30 ? unit : 0);
  }
  RESCALED_MEMBER void phi(const Row<S>& row, S z, S& u, S& du) const {
    u = du = S(0);
    if (row.there) phi_of<S>(p.kind, z, exponent, u, du);
  }
  RESCALED_MEMBER void add(const Row<S>& row, S z, S t, Coefficients<S, kVectors>& to) {
    S u, du;
    phi(row, z, u, du);
    const S b = row.b, w = row.row_weight, size = absolute(z), largest = static_cast<S>(sums.largest);
    if (row.there && (size > largest || size != size)) sums.largest = static_cast<double>(size);
    const S c = u - center * b, e = w * c, wb = w * b;
    const auto plus = [](double& sum, S part) { sum += static_cast<double>(part); };
    plus(sums.u, u), plus(sums.absolute, absolute(u)), plus(sums.target, e * b), plus(sums.residual, e * c);
    plus(sums.square, w * u * u), plus(sums.target_square, wb * b);
    if constexpr (kVectors == Vectors::gradient) to.of[0] = du * e, to.of[1] = du * wb, to.of[2] = du;
    if constexpr (kVectors == Vectors::product) {
      const bool full = p.curvature == Curvature::full;
      const S curved = w * du * du, lead = du * e, aim = du * wb;
      to.of[0] = (full ? curved + u * e : curved) * t;
      to.of[1] = full ? u * wb * t : S(0), to.of[2] = full ? u * t : S(0);
      to.of[3] = lead, to.of[4] = aim, to.of[5] = du;
      plus(sums.p, du * t), plus(sums.q_lead, lead * t), plus(sums.q_target, aim * t);
    }
    if (p.penalty_weight.data != nullptr) {
      const S part = row.penalty_weight * row.penalty_weight;
      if (row.there) plus(sums.penalty, part * z * z);
      if constexpr (kVectors != Vectors::none)
        to.of[kVectorCount<kVectors>] = row.there ? part * (kVectors == Vectors::product ? t : z) : S(0);
    }
  }
  // The warp's sums, in every lane.
  RESCALED_MEMBER Sums all() const {
    Sums s = sums;
    s.empty = false;
    RESCALED_ROLLED for (int bit = 1; bit < 32; bit *= 2) {
      Sums other;
      other.largest = shuffle_xor(s.largest, bit);
      other.u = shuffle_xor(s.u, bit), other.absolute = shuffle_xor(s.absolute, bit);
      other.target = shuffle_xor(s.target, bit), other.residual = shuffle_xor(s.residual, bit);
      other.square = shuffle_xor(s.square, bit), other.target_square = shuffle_xor(s.target_square, bit);
      other.penalty = shuffle_xor(s.penalty, bit);
      if constexpr (kVectors == Vectors::product)
        other.p = shuffle_xor(s.p, bit), other.q_lead = shuffle_xor(s.q_lead, bit),
        other.q_target = shuffle_xor(s.q_target, bit);
      cuda::join_sums(s, other);
    }
    return s;
  }
};

}  // namespace
}  // namespace rescaled
