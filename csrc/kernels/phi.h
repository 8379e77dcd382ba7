// SPDX-License-Identifier: BSD-3-Clause
// The weights of a score: exp, and the two-sided pair cosh, sinh. The one place.
//
//   exp        a = r = n = p = 2^(t + x)
//   two-sided  even = 2^x (2^t + 2^-t) / 2,  odd = 2^x (2^t - 2^-t) / 2
//              cosh: a = p = even, r = n = odd;  sinh: a = n = odd, r = p = even
//
// with t = log2(e) scale <q, k> and x = log2(e) (log weight of the key - log normalizer of the row): u/c, (du/ds)/c,
// (dc_j/ds)/c and c_j/c of a key j. `cosh` and `sinh` share one kernel, with a and r swapped at run time.
//
// Templates over the vector type's traits, so that a device twin needs only round_to_integer and scale_by_power,
// and to say whether it has few registers: then a pair is right to 4 ulp instead of 2.
#pragma once

namespace rescaled::RESCALED_ISA {
namespace {

// 2^f - 1 on [-1/2, 1/2] in its even and odd part, polynomials in g = f^2. float: weighted near-minimax fit of degree 6
// with 2^0 = 1, relative error 2e-9; double: Chebyshev fit of degree 12, 1.2e-19. The odd part's leading coefficient is
// a sum, so that its rounding does not show.
template <class T>
RESCALED_INLINE Vec<T> exp2_even(Vec<T> g) {
  if constexpr (sizeof(T) == 4) {
    return ((1.535336201e-4f * g + 9.618437358e-3f) * g + 2.402264791e-1f) * g;
  } else {
    Vec<T> y = 0x1.c4a29324a1038p-36 * g + 0x1.e4cf10dec0f59p-28;
    y = y * g + 0x1.62c02242b879cp-20;
    y = y * g + 0x1.430912f86b7dbp-13;
    y = y * g + 0x1.3b2ab6fba4e79p-7;
    y = y * g + 0x1.ebfbdff82c58fp-3;
    return y * g;
  }
}
template <class T>
RESCALED_INLINE Vec<T> times_sum(Vec<T> f, Vec<T> x, T high, T low) {  // f (x + high + low)
  if constexpr (kFewRegisters)
    return f * (x + high);
  else
    return f * high + f * (x + low);
}
template <class T>
RESCALED_INLINE Vec<T> exp2_odd(Vec<T> f, Vec<T> g) {
  if constexpr (sizeof(T) == 4) {
    const Vec<T> y = 1.339887445e-3f * g + 5.550332471e-2f;
    return times_sum<T>(f, y * g, 0x1.62e43p-1f, 2.0435400e-8f);
  } else {
    Vec<T> y = 0x1.e9ec1fcb69a7fp-32 * g + 0x1.b524ebd13a55fp-24;
    y = y * g + 0x1.ffcbfc6da6ed1p-17;
    y = y * g + 0x1.5d87fe78a3f9cp-10;
    y = y * g + 0x1.c6b08d704a0c6p-5;
    return times_sum<T>(f, y * g, 0x1.62e42fefa39efp-1, 0x1.abc9e3b39803fp-56);
  }
}

// 2^f, |f| <= 1/2, by Horner's rule: where nothing is shared it takes fewer operations, and rounds less.
template <class T>
RESCALED_INLINE Vec<T> exp2_fraction(Vec<T> f) {
  if constexpr (sizeof(T) == 4) {
    Vec<T> y = 1.535336201e-4f * f + 1.339887445e-3f;
    y = y * f + 9.618437358e-3f;
    y = y * f + 5.550332471e-2f;
    y = y * f + 2.402264791e-1f;
    y = y * f + 6.931472029e-1f;
    return y * f + 1.f;
  } else if constexpr (kFewRegisters) {
    const Vec<T> g = f * f;
    return (exp2_even<T>(g) + T(1)) + exp2_odd<T>(f, g);
  } else {
    Vec<T> y = 0x1.c4a29324a1038p-36 * f + 0x1.e9ec1fcb69a7fp-32;
    y = y * f + 0x1.e4cf10dec0f59p-28;
    y = y * f + 0x1.b524ebd13a55fp-24;
    y = y * f + 0x1.62c02242b879cp-20;
    y = y * f + 0x1.ffcbfc6da6ed1p-17;
    y = y * f + 0x1.430912f86b7dbp-13;
    y = y * f + 0x1.5d87fe78a3f9cp-10;
    y = y * f + 0x1.3b2ab6fba4e79p-7;
    y = y * f + 0x1.c6b08d704a0c6p-5;
    y = y * f + 0x1.ebfbdff82c58fp-3;
    y = y * f + 0x1.62e42fefa39efp-1;
    return y * f + 1.;
  }
}

// 2^t; 0 below 2^-126 (float) or 2^-1022 (double), NaN for NaN. t <= 127 (1023), or -inf.
template <class T>
RESCALED_INLINE Vec<T> exp2_vector(Vec<T> t) {
  const Vec<T> n = round_to_integer<T>(t);
  return scale_by_power<T>(exp2_fraction<T>(t - n), n);
}

// 2^x = factor 2^exponent: the weight of a two-sided pair, taken apart so that 2^t and 2^-t are scaled exactly.
// For x = -inf the pair becomes 0.
template <class T>
struct Weight {
  Vec<T> exponent, factor;
};
template <class T>
RESCALED_INLINE Weight<T> split_weight(Vec<T> x) {
  const Vec<T> low = Vec<T>{} - T(1e30);  // far below every exponent: both sides become 0
  const Vec<T> bounded = x < low ? low : x;
  const Vec<T> n = round_to_integer<T>(bounded);
  return {n, exp2_fraction<T>(bounded - n)};
}

// even, odd = 2^exponent (2^t +- 2^-t) / 2 for t = n + f and an integral exponent. One range reduction for both: with
// the polynomials e, o above, 2^(+-t) = 2^(+-n) (1 + e +- o); no cancellation in `odd` near t = 0. The 1 is added last,
// so that what is rounded before is small.
template <class T>
RESCALED_INLINE void two_sided(Vec<T> n, Vec<T> f, Vec<T> exponent, Vec<T>& even, Vec<T>& odd) {
  const Vec<T> g = f * f, one = Vec<T>{} + T(1);
  const Vec<T> e = exp2_even<T>(g), o = exp2_odd<T>(f, g);
  const Vec<T> half = exponent - one;  // the 1/2 of cosh and sinh
  const Vec<T> up = scale_by_power<T>(one, half + n), down = scale_by_power<T>(one, half - n);
  const Vec<T> sum = up + down, difference = up - down;
  if constexpr (kFewRegisters) {
    even = (e + one) * sum + o * difference;
    odd = (e + one) * difference + o * sum;
  } else {
    even = (e * sum + o * difference) + sum;
    odd = (e * difference + o * sum) + difference;
  }
}
template <class T>
RESCALED_INLINE void two_sided(Vec<T> t, Vec<T> exponent, Vec<T>& even, Vec<T>& odd) {
  const Vec<T> n = round_to_integer<T>(t);
  two_sided<T>(n, t - n, exponent, even, odd);
}

// z = (n + f) ln 2 with |f| <= 1/2, exact for |z| < 350 (float): log2(e) z alone would have lost eps |z|.
template <class T>
RESCALED_INLINE void reduce_natural(Vec<T> z, Vec<T>& n, Vec<T>& f) {
  constexpr T high = sizeof(T) == 4 ? T(0x1.62e4p-1) : T(0x1.62e42feep-1);  // few digits: n high is exact
  constexpr T low = sizeof(T) == 4 ? T(0x1.7f7d1cf7p-20) : T(0x1.a39ef35793c76p-33);
  n = round_to_integer<T>(z * T(kLog2e));
  f = ((z - n * high) - n * low) * T(kLog2e);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
