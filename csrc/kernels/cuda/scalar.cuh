// SPDX-License-Identifier: BSD-3-Clause
// What phi.h asks of a vector type, for the single numbers of a CUDA thread.
#pragma once
#include "device.cuh"
#include "ptx.cuh"

#define RESCALED_ISA cuda
#define RESCALED_INLINE RESCALED_DEVICE

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
using Vec = T;
constexpr bool kFewRegisters = true;  // the double backward in float64 would spill

RESCALED_DEVICE float rounded(float x) { return rintf(x); }
RESCALED_DEVICE double rounded(double x) { return rint(x); }
template <class T>
RESCALED_DEVICE T round_to_integer(T x) {
  return rounded(x);
}

// y 2^n for an integral n; 0 where n < -126 (float) or -1022 (double). Adding 1.5 2^23 (2^52) leaves n in the low bits.
template <class T>
RESCALED_DEVICE T scale_by_power(T y, T n) {
  if constexpr (sizeof(T) == 4)
    return n < -126.f ? 0.f : bits_as<float>(bits_as<uint32_t>(y) + (bits_as<uint32_t>(n + 12582912.f) << 23));
  else
    return n < -1022. ? 0. : bits_as<double>(bits_as<uint64_t>(y) + (bits_as<uint64_t>(n + 6755399441055744.) << 52));
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA

#include "../phi.h"

namespace rescaled {
namespace {

RESCALED_DEVICE float exp2_of(float t) { return exp2_approximate(t); }
RESCALED_DEVICE double exp2_of(double t) { return cuda::exp2_vector<double>(t); }

#if defined(RESCALED_TWIN)
template <class T>
RESCALED_DEVICE T natural_log(T x) {
  return std::log(x);
}
#else
RESCALED_DEVICE float natural_log(float x) { return logf(x); }
RESCALED_DEVICE double natural_log(double x) { return log(x); }
#endif

// Of two numbers; of a number and a NaN, the number.
RESCALED_DEVICE float greater(float x, float y) { return fmaxf(x, y); }
RESCALED_DEVICE double greater(double x, double y) { return fmax(x, y); }
RESCALED_DEVICE float absolute(float x) { return fabsf(x); }
RESCALED_DEVICE double absolute(double x) { return fabs(x); }

template <class T>
RESCALED_DEVICE T infinity() {
  return static_cast<T>(__builtin_inf());
}

}  // namespace
}  // namespace rescaled
