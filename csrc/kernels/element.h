// SPDX-License-Identifier: BSD-3-Clause
// Element types in memory, and their conversions to and from the arithmetic types float and double.
#pragma once
#include <cstdint>

#include "host_device.h"

#if defined(__CUDACC__)
#define RESCALED_CONVERSION static __device__ inline
#else
#define RESCALED_CONVERSION RESCALED_HOST_DEVICE
#endif

namespace rescaled {

struct BFloat16 {
  static constexpr bool kIsBFloat16 = true;
  uint16_t bits;
};
struct Float16 {
  static constexpr bool kIsBFloat16 = false;
  uint16_t bits;
};

namespace {

template <class To, class From>
RESCALED_HOST_DEVICE To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  __builtin_memcpy(&to, &from, sizeof to);
  return to;
}

RESCALED_CONVERSION float value_of(float x) { return x; }
RESCALED_CONVERSION double value_of(double x) { return x; }
RESCALED_CONVERSION float value_of(BFloat16 x) { return bits_as<float>(uint32_t{x.bits} << 16); }
RESCALED_CONVERSION float value_of(Float16 x) {
#if defined(__CUDACC__)
  float y;
  asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
  return y;
#else
  return static_cast<float>(bits_as<_Float16>(x));
#endif
}
RESCALED_CONVERSION float value_of(bool x) { return x ? 1.f : 0.f; }

RESCALED_CONVERSION void assign(float& y, float x) { y = x; }
RESCALED_CONVERSION void assign(double& y, double x) { y = x; }
RESCALED_CONVERSION void assign(BFloat16& y, float x) {  // to nearest, ties to even; a NaN stays one
  const uint32_t bits = bits_as<uint32_t>(x);
  y.bits = static_cast<uint16_t>(x != x ? 0x7fc0 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
RESCALED_CONVERSION void assign(Float16& y, float x) {
#if defined(__CUDACC__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
  y = bits_as<Float16>(static_cast<_Float16>(x));
#endif
}

}  // namespace
}  // namespace rescaled
