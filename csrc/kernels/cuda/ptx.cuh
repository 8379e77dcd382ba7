// SPDX-License-Identifier: BSD-3-Clause
// Instructions of sm_80 and later that C++ has no name for, each with its twin for the CPU. Layouts: the PTX manual's
// "Matrix Fragments for mma", and "ldmatrix". With g = lane / 4 and t = lane % 4, an accumulator of 16 x 8 is
//   c[0], c[1] = (g, 2t), (g, 2t + 1);  c[2], c[3] = (g + 8, 2t), (g + 8, 2t + 1)
#pragma once
#include "../element.h"
#include "device.cuh"
#if defined(RESCALED_TWIN)
#include <cmath>
#endif

namespace rescaled {

// Four 8 x 8 matrices of 16-bit elements; lane l names the row l % 8 of matrix l / 8. r[i]: elements (g, 2t), (g, 2t +
// 1) of matrix i, or of its transpose.
template <bool kTransposed>
RESCALED_DEVICE void load_matrices(uint32_t (&r)[4], const void* row) {
#if defined(RESCALED_TWIN)
  const twin::Exchange<const uint16_t*> rows(static_cast<const uint16_t*>(row));
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  for (int i = 0; i < 4; ++i) {
    const auto at = [&](int y, int x) { return uint32_t{kTransposed ? rows.of(8 * i + x)[y] : rows.of(8 * i + y)[x]}; };
    r[i] = at(g, 2 * t) | at(g, 2 * t + 1) << 16;
  }
#else
  const uint32_t address = static_cast<uint32_t>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
#endif
}

#if defined(RESCALED_TWIN)
template <class T>
RESCALED_DEVICE float half_of(uint32_t pair, int i) {
  return value_of(T{static_cast<uint16_t>(pair >> (16 * i))});
}
struct Fragments16 {
  uint32_t a[4], b[2];
};
#endif

// c += a b: 16 x 16 times 16 x 8, of T = BFloat16 or Float16.
// a: pairs (g, 2t), (g + 8, 2t), (g, 2t + 8), (g + 8, 2t + 8) along the depth; b: pairs (2t, g), (2t + 8, g).
template <class T>
RESCALED_DEVICE void multiply_16bit(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
#if defined(RESCALED_TWIN)
  const twin::Exchange<Fragments16> all({{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  float x[2][16], y[2][16];  // rows g, g + 8 of a; columns 2t, 2t + 1 of b
  for (int i = 0; i < 2; ++i)
    for (int k = 0; k < 16; ++k) {
      x[i][k] = half_of<T>(all.of(4 * g + k % 8 / 2).a[i + 2 * (k / 8)], k % 2);
      y[i][k] = half_of<T>(all.of(4 * (2 * t + i) + k % 8 / 2).b[k / 8], k % 2);
    }
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) c[i] += x[i / 2][k] * y[i % 2][k];
#else
  if constexpr (T::kIsBFloat16)
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, "
        "%2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
        "%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// x rounded to TF32's 10 bits of mantissa, to nearest.
RESCALED_DEVICE float to_tf32(float x) {
#if defined(RESCALED_TWIN)
  return std::isfinite(x) ? bits_as<float>((bits_as<uint32_t>(x) + 0x1000u) & ~0x1fffu) : x;
#else
  uint32_t y;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(y) : "f"(x));
  return __uint_as_float(y);
#endif
}

#if defined(RESCALED_TWIN)
struct Fragments32 {
  float a[4], b[2];
};
#endif

// c += a b: 16 x 8 times 8 x 8 of TF32. a: (g, t), (g + 8, t), (g, t + 4), (g + 8, t + 4); b: (t, g), (t + 4, g).
RESCALED_DEVICE void multiply_tf32(float (&c)[4], const float (&a)[4], const float (&b)[2]) {
#if defined(RESCALED_TWIN)
  const twin::Exchange<Fragments32> all({{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 8; ++k)
      c[i] +=
          to_tf32(all.of(4 * g + k % 4).a[i / 2 + 2 * (k / 4)]) * to_tf32(all.of(4 * (2 * t + i % 2) + k % 4).b[k / 4]);
#else
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(__float_as_uint(a[0])), "r"(__float_as_uint(a[1])), "r"(__float_as_uint(a[2])), "r"(__float_as_uint(a[3])),
        "r"(__float_as_uint(b[0])), "r"(__float_as_uint(b[1])));
#endif
}

#if defined(RESCALED_TWIN)
struct Fragments64 {
  double a, b;
};
#endif

// c += a b: 8 x 4 times 4 x 8 of float64. a: (g, t); b: (t, g); c: (g, 2t), (g, 2t + 1).
RESCALED_DEVICE void multiply_f64(double& c0, double& c1, double a, double b) {
#if defined(RESCALED_TWIN)
  const twin::Exchange<Fragments64> all({a, b});
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  for (int k = 0; k < 4; ++k) {
    c0 = std::fma(all.of(4 * g + k).a, all.of(4 * (2 * t) + k).b, c0);
    c1 = std::fma(all.of(4 * g + k).a, all.of(4 * (2 * t + 1) + k).b, c1);
  }
#else
  asm("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
      : "+d"(c0), "+d"(c1)
      : "d"(a), "d"(b));
#endif
}

// Asynchronous copies of 16 bytes from global to shared memory, in groups; a group is there for the thread that waited,
// and for the block after a barrier.
RESCALED_DEVICE void copy_async(void* to, const void* from) {
#if defined(RESCALED_TWIN)
  twin::block().fibers[twin::block().current].copies.push_back({to, from});
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from)
               : "memory");
#endif
}
// The same, or zeros for the copy of nothing.
RESCALED_DEVICE void copy_async_or_zero(void* to, const void* from, bool there) {
#if defined(RESCALED_TWIN)
  static const unsigned char zeros[16] = {};
  copy_async(to, there ? from : zeros);
#else
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
               :
               : "r"(static_cast<uint32_t>(__cvta_generic_to_shared(to))), "l"(from), "r"(there ? 16 : 0)
               : "memory");
#endif
}
RESCALED_DEVICE void copy_commit() {
#if defined(RESCALED_TWIN)
  twin::Fiber& f = twin::block().fibers[twin::block().current];
  f.groups.push_back(std::move(f.copies));
  f.copies.clear();
#else
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most the last `kPending` groups are under way.
template <int kPending>
RESCALED_DEVICE void copy_wait() {
#if defined(RESCALED_TWIN)
  auto& groups = twin::block().fibers[twin::block().current].groups;
  while (groups.size() > kPending) {
    for (const twin::Copy& c : groups.front()) std::memcpy(c.to, c.from, 16);
    groups.erase(groups.begin());
  }
#else
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#endif
}

// Two numbers as a pair of T, the first in the lower half.
template <class T>
RESCALED_DEVICE uint32_t pack_pair(float x, float y) {
  uint32_t pair;
#if defined(RESCALED_TWIN)
  T low, high;
  assign(low, x), assign(high, y);
  pair = low.bits | uint32_t{high.bits} << 16;
#else
  if constexpr (T::kIsBFloat16)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(y), "f"(x));
#endif
  return pair;
}

// 2^x within 2 ulp, results below 2^-126 flushed to 0.
RESCALED_DEVICE float exp2_approximate(float x) {
#if defined(RESCALED_TWIN)
  const float y = std::exp2(x);
  return std::fpclassify(y) == FP_SUBNORMAL ? 0.f : y;
#else
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
#endif
}

}  // namespace rescaled
