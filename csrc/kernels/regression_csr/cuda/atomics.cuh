// SPDX-License-Identifier: BSD-3-Clause
// Atomic operations on integers, whose results do not depend on their order.
#pragma once
#include "../../cuda/device.cuh"

namespace rescaled {
namespace {

#if defined(RESCALED_TWIN)  // a thread runs until it waits
RESCALED_DEVICE void add_to(uint64_t* to, uint64_t x) { *to += x; }
RESCALED_DEVICE uint32_t fetch_add(uint32_t* to, uint32_t x) {
  const uint32_t before = *to;
  *to += x;
  return before;
}
RESCALED_DEVICE void raise_to(int32_t* to, int32_t x) { *to = *to < x ? x : *to; }
RESCALED_DEVICE void set_bits(int32_t* to, int32_t bits) { *to |= bits; }
RESCALED_DEVICE int32_t exchange_if(int32_t* to, int32_t expected, int32_t x) {
  const int32_t before = *to;
  if (before == expected) *to = x;
  return before;
}
RESCALED_DEVICE int32_t load_fresh(const int32_t* from) { return *from; }
template <class T>
RESCALED_DEVICE T load_once(const T* from) {
  return *from;
}
#else
RESCALED_DEVICE void add_to(uint64_t* to, uint64_t x) { atomicAdd(reinterpret_cast<unsigned long long*>(to), x); }
RESCALED_DEVICE uint32_t fetch_add(uint32_t* to, uint32_t x) { return atomicAdd(to, x); }
RESCALED_DEVICE void raise_to(int32_t* to, int32_t x) { atomicMax(to, x); }
RESCALED_DEVICE void set_bits(int32_t* to, int32_t bits) { atomicOr(to, bits); }
RESCALED_DEVICE int32_t exchange_if(int32_t* to, int32_t expected, int32_t x) { return atomicCAS(to, expected, x); }
// As the second-level cache has it: what other blocks wrote is seen.
RESCALED_DEVICE int32_t load_fresh(const int32_t* from) { return __ldcg(from); }
// Read once: what other data there is stays in the caches.
template <class T>
RESCALED_DEVICE T load_once(const T* from) {
  if constexpr (sizeof(T) == 2)
    return T{__ldcs(reinterpret_cast<const unsigned short*>(from))};
  else
    return __ldcs(from);
}
#endif

}  // namespace
}  // namespace rescaled
