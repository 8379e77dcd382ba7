// SPDX-License-Identifier: BSD-3-Clause
// Rows of A across the lanes of warps: loads, and products with vectors.
#pragma once
#include <type_traits>

#include "../../cuda/scalar.cuh"
#include "plan.h"

namespace rescaled {
namespace {

// Of the arithmetic.
template <class T>
using Number = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T, bool kWhole>
struct alignas(kWhole ? 16 : sizeof(T)) Pack {
  T x[kWidth<T, kWhole>];
};

// Read once: what other data there is stays in the caches.
template <class T>
RESCALED_DEVICE Pack<T, true> load_pack(const T* from) {
  Pack<T, true> to;
#if defined(RESCALED_TWIN)
  __builtin_memcpy(&to, from, 16);
#else
  const uint4 bits = __ldcs(reinterpret_cast<const uint4*>(from));
  __builtin_memcpy(&to, &bits, 16);
#endif
  return to;
}

// The columns of a lane's pack: of 16 contiguous bytes; where loads are of single elements, neighbors in the row lie in
// neighboring lanes.
template <class T, bool kWhole>
struct Columns {
  int first, apart, count;  // apart: of neighbors in the pack
  RESCALED_MEMBER Columns(int base, int lane, int lanes, int columns)
      : first(base + (kWhole ? lane * kWidth<T, kWhole> : lane)), apart(kWhole ? 1 : lanes), count(columns) {}
  RESCALED_MEMBER int at(int e) const { return first + e * apart; }
  RESCALED_MEMBER bool has(int e) const { return at(e) < count; }
  RESCALED_MEMBER Pack<T, kWhole> load(const T* row, int64_t column) const {
    Pack<T, kWhole> to = {};
    if constexpr (kWhole) {
      if (has(0)) to = load_pack(row + first);
    } else {
      const T* from = row + first * column;
      RESCALED_UNROLL for (int e = 0; e < kWidth<T, kWhole>; ++e, from += apart * column) if (has(e)) to.x[e] = *from;
    }
    return to;
  }
  // Numbers of a vector at these columns, 0 beyond the last.
  template <class S>
  RESCALED_MEMBER void load(InputView v, S (&to)[kWidth<T, kWhole>]) const {
    const S* const from = static_cast<const S*>(v.data);
    RESCALED_UNROLL for (int e = 0; e < kWidth<T, kWhole>; ++e) to[e] = has(e) ? from[at(e) * v.row] : S(0);
  }
};

// What a lane holds of a tile: kLoads packs, of the rows first + i per + its place among `per`. Beyond the last row
// that is repeated.
template <class T, bool kWhole>
struct Tile {
  using S = Number<T>;
  Pack<T, kWhole> pack[kLoads];
  RESCALED_MEMBER void load(InputView A, const Columns<T, kWhole>& columns, int64_t first, int per, int64_t rows) {
    const T* const data = static_cast<const T*>(A.data);
    RESCALED_UNROLL for (int i = 0; i < kLoads; ++i) {
      const int64_t row = first + i * per;
      pack[i] = columns.load(data + (row < rows ? row : rows - 1) * A.row, A.column);
    }
  }
  // s[i] += row i times x
  RESCALED_MEMBER void multiply(const S (&x)[kWidth<T, kWhole>], S (&s)[kLoads]) const {
    RESCALED_UNROLL for (int i = 0; i < kLoads; ++i) RESCALED_UNROLL for (int e = 0; e < kWidth<T, kWhole>; ++e) s[i] +=
        value_of(pack[i].x[e]) * x[e];
  }
};

// Each over the lanes that share a row.
template <class S>
RESCALED_DEVICE void sum_over(S (&s)[kLoads], int lanes) {
  RESCALED_ROLLED for (int bit = 1; bit < lanes; bit *= 2) RESCALED_UNROLL for (int i = 0; i < kLoads; ++i) s[i] +=
      shuffle_xor(s[i], bit);
}
template <class S>
RESCALED_DEVICE S sum_between(S s, int lowest) {  // over lanes that differ in bits from `lowest` on
  RESCALED_ROLLED for (int bit = lowest; bit < 32; bit *= 2) s += shuffle_xor(s, bit);
  return s;
}
template <class S>
RESCALED_DEVICE S largest_over_warp(S s) {
  RESCALED_UNROLL for (int bit = 1; bit < 32; bit *= 2) s = greater(s, shuffle_xor(s, bit));
  return s;
}

}  // namespace
}  // namespace rescaled
