// SPDX-License-Identifier: BSD-3-Clause
// Products of sparse rows with a vector by gathers of AVX-512, which look at the indices as they follow them.
#pragma once
#include "csr_reader.h"

#if defined(__AVX512F__)
namespace rescaled::RESCALED_ISA {
namespace {

// Of kLanes values at a time, of those that `mask` has: indices, values, and both together.
struct WideIndices {
  static constexpr int kLanes = 8;
  using Mask = __mmask8;
  using Index = __m512i;
  static Index all(uint64_t x) { return _mm512_set1_epi64(static_cast<int64_t>(x)); }
  static Index load(Mask mask, const int64_t* p) { return _mm512_maskz_loadu_epi64(mask, p); }
  static Mask below(Mask mask, Index x, Index y) { return _mm512_mask_cmplt_epu64_mask(mask, x, y); }
};
struct Doubles {
  static __m512d load(__mmask8 mask, const double* p) { return _mm512_maskz_loadu_pd(mask, p); }
  static double sum(__m512d x) { return _mm512_reduce_add_pd(x); }
};

template <class T, class Index>
struct Gathers;
template <>
struct Gathers<float, int32_t> {
  static constexpr int kLanes = 16;
  using Mask = __mmask16;
  using Index = __m512i;
  static Index all(uint64_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
  static Index load(Mask mask, const int32_t* p) { return _mm512_maskz_loadu_epi32(mask, p); }
  static __m512 load(Mask mask, const float* p) { return _mm512_maskz_loadu_ps(mask, p); }
  static Mask below(Mask mask, Index x, Index y) { return _mm512_mask_cmplt_epu32_mask(mask, x, y); }
  static __m512 gather(Mask mask, Index at, const float* p) {
    return _mm512_mask_i32gather_ps(_mm512_setzero_ps(), mask, at, p, 4);
  }
  static float sum(__m512 x) { return _mm512_reduce_add_ps(x); }
};
template <>
struct Gathers<float, int64_t> : WideIndices {
  using WideIndices::load;
  static __m256 load(Mask mask, const float* p) { return _mm256_maskz_loadu_ps(mask, p); }
  static __m256 gather(Mask mask, Index at, const float* p) {
    return _mm512_mask_i64gather_ps(_mm256_setzero_ps(), mask, at, p, 4);
  }
  static float sum(__m256 x) { return _mm512_reduce_add_ps(_mm512_zextps256_ps512(x)); }
};
template <>
struct Gathers<double, int32_t> : Doubles {
  static constexpr int kLanes = 8;
  using Mask = __mmask8;
  using Index = __m256i;
  using Doubles::load;
  static Index all(uint64_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
  static Index load(Mask mask, const int32_t* p) { return _mm256_maskz_loadu_epi32(mask, p); }
  static Mask below(Mask mask, Index x, Index y) { return _mm256_mask_cmplt_epu32_mask(mask, x, y); }
  static __m512d gather(Mask mask, Index at, const double* p) {
    return _mm512_mask_i32gather_pd(_mm512_setzero_pd(), mask, at, p, 8);
  }
};
template <>
struct Gathers<double, int64_t> : WideIndices, Doubles {
  using Doubles::load;
  using WideIndices::load;
  static __m512d gather(Mask mask, Index at, const double* p) {
    return _mm512_mask_i64gather_pd(_mm512_setzero_pd(), mask, at, p, 8);
  }
};

// As multiply_csr, of values in T. Where an index is wrong nothing is read, and false returned in the end.
template <class T, class Index>
static bool multiply_by_gathers(const Reader<Index>& reader, const CsrRows<Index>& a, int64_t first, int64_t count,
                                const T* x, T* out) {
  using G = Gathers<T, Index>;
  using Mask = typename G::Mask;
  const auto columns = G::all(reader.columns[0]);
  const T* const values = static_cast<const T*>(a.values);
  Mask outside = 0;
  int64_t k = a.crow[first];
  for (int64_t r = 0; r < count; ++r) {
    const int64_t end = a.crow[first + r + 1];
    if (!reader.orders(k, end)) return false;
    decltype(G::load(Mask(), values)) sum = {};
    for (; k < end; k += G::kLanes) {
      const int64_t left = end - k;
      const Mask mask = static_cast<Mask>(left >= G::kLanes ? -1 : (1 << left) - 1);
      reader.ask_ahead(k, G::kLanes);
      const auto at = G::load(mask, a.col + k);
      const Mask inside = G::below(mask, at, columns);
      outside = static_cast<Mask>(outside | (mask ^ inside));
      sum += G::gather(inside, at, x) * G::load(mask, values + k);
    }
    k = end;
    out[r] = G::sum(sum);
  }
  return outside == 0;
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
#endif
