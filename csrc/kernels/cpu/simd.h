// SPDX-License-Identifier: BSD-3-Clause
// Vectors of float and double, one source for every instruction set (GCC vector extensions; the width follows the
// flags). Everything has internal linkage: a function emitted for AVX-512 must never be picked by the linker for an
// older processor.
#pragma once
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define RESCALED_INLINE static inline __attribute__((always_inline))
#define RESCALED_UNROLL _Pragma("GCC unroll 32")

namespace rescaled::RESCALED_ISA {
namespace {

#if defined(__AVX512F__)
enum { kVectorBytes = 64 };
#elif defined(__AVX2__)
enum { kVectorBytes = 32 };
#else
enum { kVectorBytes = 16 };
#endif

typedef float FloatVector __attribute__((vector_size(kVectorBytes)));
typedef double DoubleVector __attribute__((vector_size(kVectorBytes)));

typedef uint64_t UInt64Vector __attribute__((vector_size(kVectorBytes)));
typedef uint32_t UInt32Vector __attribute__((vector_size(kVectorBytes)));

template <class T>
struct Simd;
template <>
struct Simd<float> {
  using Vector = FloatVector;
  using Integer = UInt32Vector;  // exponents are added as integers, and wrap
  static constexpr int kLanes = kVectorBytes / 4;
  static constexpr int kMantissaBits = 23;
  static constexpr float kRound = 12582912.f;  // 1.5 2^23: adding it rounds to an integer
  static constexpr float kMinExponent = -126.f;
};
template <>
struct Simd<double> {
  using Vector = DoubleVector;
  using Integer = UInt64Vector;
  static constexpr int kLanes = kVectorBytes / 8;
  static constexpr int kMantissaBits = 52;
  static constexpr double kRound = 6755399441055744.;  // 1.5 2^52
  static constexpr double kMinExponent = -1022.;
};
template <class T>
using Vec = typename Simd<T>::Vector;
template <class T>
inline constexpr int kLanes = Simd<T>::kLanes;

// Register tiles: kTileRows broadcast rows times kTileVectors vectors (the accumulators fill 24 of 32, or 12 of 16
// registers). With AMX, which only products of bfloat16 use, 32 rows times twice two vectors.
#if defined(__AMX_BF16__)
constexpr int kTileVectors = 4;
#else
constexpr int kTileVectors = 3;
#endif
#if defined(__AMX_BF16__)
constexpr int kTileRows = 32;  // two tiles
#elif defined(__AVX512F__)
constexpr int kTileRows = 8;
#else
constexpr int kTileRows = 4;
#endif

constexpr bool kFewRegisters = false;  // of ../phi.h

// A number as a function's argument.
template <int kValue>
struct Constant {
  static constexpr int value = kValue;
};

template <class T>
RESCALED_INLINE Vec<T> load(const T* p) {
  Vec<T> x;
  __builtin_memcpy(&x, p, sizeof x);
  return x;
}
template <class T>
RESCALED_INLINE void store(T* p, Vec<T> x) {
  __builtin_memcpy(p, &x, sizeof x);
}
// The first `count` < kLanes elements, then zeros.
template <class T>
RESCALED_INLINE Vec<T> load_first(const T* p, int64_t count) {
#if defined(__AVX512F__)
  const uint32_t mask = (1u << count) - 1;
  if constexpr (sizeof(T) == 4)
    return (FloatVector)_mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), p);
  else
    return (DoubleVector)_mm512_maskz_loadu_pd(static_cast<__mmask8>(mask), p);
#elif defined(__AVX2__)
  typename Simd<T>::Integer position, last = {};
  RESCALED_UNROLL for (int i = 0; i < Simd<T>::kLanes; ++i) position[i] = i;
  RESCALED_UNROLL for (int i = 0; i < Simd<T>::kLanes; ++i) last[i] = static_cast<uint32_t>(count);
  const __m256i mask = (__m256i)(position < last);
  if constexpr (sizeof(T) == 4)
    return (FloatVector)_mm256_maskload_ps(p, mask);
  else
    return (DoubleVector)_mm256_maskload_pd(p, mask);
#else
  Vec<T> x = {};
  for (int64_t i = 0; i < count; ++i) x[i] = p[i];
  return x;
#endif
}
template <class T>
RESCALED_INLINE Vec<T> broadcast(T x) {
  return x - Vec<T>{};
}

// Of equal or unordered arguments the second: a NaN in b survives.
template <class V>
RESCALED_INLINE V maximum(V a, V b) {
  return a > b ? a : b;
}
template <class V>
RESCALED_INLINE V absolute(V a) {
  return maximum(a, -a);
}

template <class T>
RESCALED_INLINE Vec<T> round_to_integer(Vec<T> x) {
#if defined(__AVX512F__)
  if constexpr (sizeof(T) == 4)
    return (FloatVector)_mm512_roundscale_ps((__m512)x, 8);
  else
    return (DoubleVector)_mm512_roundscale_pd((__m512d)x, 8);
#else
  return (x + Simd<T>::kRound) - Simd<T>::kRound;
#endif
}

// y 2^n for an integral n, 0 where n < -126 (float) or -1022 (double): denormal weights are dropped, they only cost
// time.
template <class T>
RESCALED_INLINE Vec<T> scale_by_power(Vec<T> y, Vec<T> n) {
  const Vec<T> zero = {};
#if defined(__AVX512F__)
  const Vec<T> low = zero + Simd<T>::kMinExponent;
  if constexpr (sizeof(T) == 4)
    return (FloatVector)_mm512_maskz_scalef_ps(_mm512_cmp_ps_mask((__m512)n, (__m512)low, _CMP_NLT_UQ), (__m512)y,
                                               (__m512)n);
  else
    return (DoubleVector)_mm512_maskz_scalef_pd(_mm512_cmp_pd_mask((__m512d)n, (__m512d)low, _CMP_NLT_UQ), (__m512d)y,
                                                (__m512d)n);
#else
  using Integer = typename Simd<T>::Integer;
  const Vec<T> shifted = n + Simd<T>::kRound;
  const Vec<T> scaled = (Vec<T>)((Integer)y + ((Integer)shifted << Simd<T>::kMantissaBits));
  return n < Simd<T>::kMinExponent ? zero : scaled;
#endif
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
