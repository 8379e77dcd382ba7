// SPDX-License-Identifier: BSD-3-Clause
// Products of a warpgroup (4 warps, 64 rows) by Hopper's asynchronous tensor-core instructions, each with its twin for
// the CPU. Operands lie in shared memory as panels: 64 columns of 16-bit elements, a row 128 bytes, whose units of 16
// bytes are permuted (the instruction's "128-byte swizzle"), so that rows and columns both are read without conflicts.
// A tile begins at a multiple of 1024 bytes.
// Layouts: the PTX manual's "Asynchronous Warpgroup Level Matrix Instructions".
//
// A warp's part of an accumulator of 64 x 8 n is that of n accumulators of 16 x 8 (ptx.cuh), and so is A in registers.
#pragma once
#include "ptx.cuh"

#if defined(RESCALED_TWIN) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define RESCALED_HAS_WARPGROUPS 1
#else
#define RESCALED_HAS_WARPGROUPS 0
#endif

namespace rescaled {

constexpr int kPanelColumns = 64, kGroupWarps = 4, kGroupRows = 64;

// Where the unit of 8 elements with row r and column c (a multiple of 8) begins, in a tile of `rows` (a multiple of 8).
RESCALED_DEVICE int panel_offset(int rows, int r, int c) {
  return (c / kPanelColumns * rows + r) * kPanelColumns + ((c % kPanelColumns / 8) ^ (r % 8)) * 8;
}

// A tile's row 0, at some column: what a product is told of it, with the distance of its panels.
template <class T>
struct Panels {
#if defined(RESCALED_TWIN)
  const T* start;
  int panel_stride;
  RESCALED_MEMBER Panels(const T* start, int panel_stride) : start(start), panel_stride(panel_stride) {}
  RESCALED_MEMBER Panels at(int elements) const { return {start + elements, panel_stride}; }
  RESCALED_MEMBER float operator()(int r, int c) const {
    const int unit = static_cast<int>(reinterpret_cast<uintptr_t>(start) % 128 / 16), column = unit * 8 + c;
    const T* const panel = start - unit * 8 + column / kPanelColumns * panel_stride;
    return value_of(panel[r * kPanelColumns + (column % kPanelColumns / 8 ^ r % 8) * 8 + c % 8]);
  }
#else
  uint64_t descriptor;  // address, distance of panels, distance of groups of 8 rows, each over 16; the permutation
  RESCALED_MEMBER explicit Panels(uint64_t descriptor) : descriptor(descriptor) {}
  RESCALED_MEMBER Panels(const T* start, int panel_stride)
      : descriptor((shared_address(start) >> 4 & 0x3fff) | static_cast<uint64_t>(panel_stride / 8) << 16 |
                   static_cast<uint64_t>(1024 / 16) << 32 | static_cast<uint64_t>(1) << 62) {}
  RESCALED_MEMBER Panels at(int elements) const { return Panels(descriptor + elements / 8); }
#endif
};

// Before the first product, and after registers that one takes or adds to were written.
RESCALED_DEVICE void group_fence() {
#if !defined(RESCALED_TWIN) && RESCALED_HAS_WARPGROUPS
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
#endif
}
RESCALED_DEVICE void group_commit() {
#if !defined(RESCALED_TWIN) && RESCALED_HAS_WARPGROUPS
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
#endif
}
// Waits for this warpgroup's committed products.
RESCALED_DEVICE void group_wait() {
#if !defined(RESCALED_TWIN) && RESCALED_HAS_WARPGROUPS
  asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#endif
}
// What this thread wrote into shared memory is seen by the products of whoever meets it at a barrier.
RESCALED_DEVICE void products_fence() {
#if !defined(RESCALED_TWIN)
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}

#if !defined(RESCALED_TWIN) && RESCALED_HAS_WARPGROUPS
#define RESCALED_R8(j, c) \
  c(d[j][0]), c(d[j][1]), c(d[j][2]), c(d[j][3]), c(d[j + 1][0]), c(d[j + 1][1]), c(d[j + 1][2]), c(d[j + 1][3])
#define RESCALED_R16(j, c) RESCALED_R8(j, c), RESCALED_R8(j + 2, c)
#define RESCALED_R32(j, c) RESCALED_R16(j, c), RESCALED_R16(j + 4, c)
#define RESCALED_R64(j, c) RESCALED_R32(j, c), RESCALED_R32(j + 8, c)
#define RESCALED_ADDED(x) "+f"(x)
#define RESCALED_FRESH(x) "=f"(x)
#define RESCALED_NAMES8 "%0, %1, %2, %3, %4, %5, %6, %7"
#define RESCALED_NAMES16 RESCALED_NAMES8 ", %8, %9, %10, %11, %12, %13, %14, %15"
#define RESCALED_NAMES32 \
  RESCALED_NAMES16 ", %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31"
#define RESCALED_NAMES64                                                                                        \
  RESCALED_NAMES32                                                                                              \
  ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// n: columns; r: registers of the accumulator, then the numbers of what follows them.
#define RESCALED_PRODUCT(n, type, r, a, b, registers, adds)                                                          \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " adds ", 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type \
               "." type " {" RESCALED_NAMES##r "}, %" #a ", %" #b ", p, 1, 1, 0, 0;\n}"                              \
               : RESCALED_R##r(0, registers)                                                                         \
               : "l"(x), "l"(y))
#define RESCALED_PRODUCTS(n, r, a, b)                          \
  if constexpr (T::kIsBFloat16 && kFresh)                      \
    RESCALED_PRODUCT(n, "bf16", r, a, b, RESCALED_FRESH, "0"); \
  else if constexpr (T::kIsBFloat16)                           \
    RESCALED_PRODUCT(n, "bf16", r, a, b, RESCALED_ADDED, "1"); \
  else if constexpr (kFresh)                                   \
    RESCALED_PRODUCT(n, "f16", r, a, b, RESCALED_FRESH, "0");  \
  else                                                         \
    RESCALED_PRODUCT(n, "f16", r, a, b, RESCALED_ADDED, "1")
#define RESCALED_WEIGHTED(n, type, r, a0, a1, a2, a3, b)                                                               \
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type \
               " {" RESCALED_NAMES##r "}, {%" #a0 ", %" #a1 ", %" #a2 ", %" #a3 "}, %" #b ", p, 1, 1, 1;\n}"           \
               : RESCALED_R##r(0, RESCALED_ADDED)                                                                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(y))
#endif

// d = a b^T, or d += a b^T, over the next 16 columns of a (this warpgroup's 64 rows) and b (8 kTiles rows). Under way
// until committed and waited for.
template <bool kFresh, int kTiles, class T>
RESCALED_DEVICE void group_multiply(float (&d)[kTiles][4], Panels<T> a, Panels<T> b) {
#if defined(RESCALED_TWIN)
  const int lane = thread_index() % 32, row = thread_index() / 32 % kGroupWarps * 16 + lane / 4;
  for (int j = 0; j < kTiles; ++j)
    for (int i = 0; i < 4; ++i) {
      float sum = kFresh ? 0.f : d[j][i];
      for (int k = 0; k < 16; ++k) sum += a(row + i / 2 * 8, k) * b(8 * j + lane % 4 * 2 + i % 2, k);
      d[j][i] = sum;
    }
#elif RESCALED_HAS_WARPGROUPS
  const uint64_t x = a.descriptor, y = b.descriptor;
  if constexpr (kTiles == 4) {
    RESCALED_PRODUCTS(32, 16, 16, 17);
  } else if constexpr (kTiles == 8) {
    RESCALED_PRODUCTS(64, 32, 32, 33);
  } else {
    static_assert(kTiles == 16);
    RESCALED_PRODUCTS(128, 64, 64, 65);
  }
#endif
}

// d += a b: a: 64 x 16 in registers; b: the next 16 rows, and 8 kTiles columns.
template <int kTiles, class T>
RESCALED_DEVICE void group_multiply_weights(float (&d)[kTiles][4], const uint32_t (&a)[4], Panels<T> b) {
#if defined(RESCALED_TWIN)
  const twin::Exchange<Fragments16> all({{a[0], a[1], a[2], a[3]}, {}});
  const int g = thread_index() % 32 / 4, t = thread_index() % 4;
  for (int j = 0; j < kTiles; ++j)
    for (int i = 0; i < 4; ++i)
      for (int k = 0; k < 16; ++k)
        d[j][i] += half_of<T>(all.of(4 * g + k % 8 / 2).a[i / 2 + 2 * (k / 8)], k % 2) * b(k, 8 * j + 2 * t + i % 2);
#elif RESCALED_HAS_WARPGROUPS
  const uint64_t y = b.descriptor;
  if constexpr (kTiles == 8) {
    if constexpr (T::kIsBFloat16)
      RESCALED_WEIGHTED(64, "bf16", 32, 32, 33, 34, 35, 36);
    else
      RESCALED_WEIGHTED(64, "f16", 32, 32, 33, 34, 35, 36);
  } else {
    static_assert(kTiles == 16);
    if constexpr (T::kIsBFloat16)
      RESCALED_WEIGHTED(128, "bf16", 64, 64, 65, 66, 67, 68);
    else
      RESCALED_WEIGHTED(128, "f16", 64, 64, 65, 66, 67, 68);
  }
#endif
}

}  // namespace rescaled
