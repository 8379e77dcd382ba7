// SPDX-License-Identifier: BSD-3-Clause
// Sums in fixed point, the same in every order of the terms: what makes sums by atomic additions deterministic.
//
// A sum has a code, which bounds its terms: |term| < 2^(code - 1022). Terms become integers by a power of two that
// leaves room for all of them in 64 bits; what is below the integers' last bit goes to a second integer, scaled alike.
// With 2^24 terms an integer has 38 bits below the largest term: more than a float32 has; two have 76.
#pragma once
#include "../../element.h"
#include "atomics.cuh"

namespace rescaled {
namespace {

constexpr int32_t kPlusInfinity = 1 << 28, kMinusInfinity = 1 << 29, kNotANumber = 1 << 30, kSpecial = 7 << 28;

// 0 for 0: a sum that no term has raised.
RESCALED_DEVICE int32_t code_of(double term) {
  const uint64_t bits = bits_as<uint64_t>(term), size = bits << 1 >> 1;
  const int32_t exponent = static_cast<int32_t>(size >> 52);
  if (exponent == 2047) return size << 12 != 0 ? kNotANumber : size != bits ? kMinusInfinity : kPlusInfinity;
  return exponent == 0 && size != 0 ? 1 : exponent;
}
RESCALED_DEVICE void raise_code(int32_t* code, double term) {
  const int32_t by = code_of(term), is = load_fresh(code);
  if (by >= kPlusInfinity) {
    if ((is & by) == 0) set_bits(code, by);
  } else if (is < by) {
    raise_to(code, by);
  }
}

// Bits of a term's integers: `room` is the logarithm, rounded up, of the number of terms.
RESCALED_HOST_DEVICE int bits_of_terms(int room) { return 62 - room; }
RESCALED_HOST_DEVICE int logarithm(int64_t count) {
  int room = 0;
  while (room < 62 && int64_t{1} << room < count) ++room;
  return room;
}

RESCALED_DEVICE double power(int exponent) { return bits_as<double>(static_cast<uint64_t>(1023 + exponent) << 52); }
RESCALED_DEVICE int exponent_of_scale(int32_t code, int bits) {
  const int exponent = bits + 1022 - code;
  return exponent > 1022 ? 1022 : exponent;  // its inverse is a normal number; such terms are below 2^-900
}

#if defined(RESCALED_TWIN)
RESCALED_DEVICE int64_t nearest(double x) { return __builtin_llrint(x); }
#else
RESCALED_DEVICE int64_t nearest(double x) { return __double2ll_rn(x); }
#endif

template <int kWords>
struct Term {
  uint64_t word[kWords];
  RESCALED_MEMBER Term(double term, int32_t code, int bits) {
    const double scaled = term * power(exponent_of_scale(code, bits));
    const int64_t high = nearest(scaled);
    word[0] = static_cast<uint64_t>(high);
    if constexpr (kWords == 2)
      word[1] = static_cast<uint64_t>(nearest((scaled - static_cast<double>(high)) * power(bits)));
  }
};

template <int kWords>
RESCALED_DEVICE double value_of_sum(const uint64_t* word, int32_t code, int bits) {
  if ((code & kSpecial) != 0)
    return (code & kSpecial) == kPlusInfinity    ? __builtin_inf()
           : (code & kSpecial) == kMinusInfinity ? -__builtin_inf()
                                                 : __builtin_nan("");
  double sum = static_cast<double>(static_cast<int64_t>(word[0]));
  if constexpr (kWords == 2) sum += static_cast<double>(static_cast<int64_t>(word[1])) * power(-bits);
  return sum * power(-exponent_of_scale(code, bits));
}

}  // namespace
}  // namespace rescaled
