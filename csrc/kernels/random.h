// SPDX-License-Identifier: BSD-3-Clause
// Dropout's random numbers: counter-based, so that every primitive recomputes the same mask, in any order, on any
// device.
//
// Threefry-2x32 with 13 rounds: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
#pragma once
#include <cstdint>

#include "host_device.h"

namespace rescaled {

RESCALED_HOST_DEVICE uint32_t rotate_left(uint32_t x, int bits) { return (x << bits) | (x >> (32 - bits)); }

#define RESCALED_ROUND(bits) \
  x0 += x1;                  \
  x1 = rotate_left(x1, bits) ^ x0;
// First word of Threefry-2x32-13 for the key (key0, key1) and the counter (x0, x1).
RESCALED_HOST_DEVICE uint32_t threefry(uint32_t key0, uint32_t key1, uint32_t x0, uint32_t x1) {
  const uint32_t key2 = key0 ^ key1 ^ 0x1BD11BDAu;
  x0 += key0, x1 += key1;
  RESCALED_ROUND(13) RESCALED_ROUND(15) RESCALED_ROUND(26) RESCALED_ROUND(6) x0 += key1, x1 += key2 + 1;
  RESCALED_ROUND(17) RESCALED_ROUND(29) RESCALED_ROUND(16) RESCALED_ROUND(24) x0 += key2, x1 += key0 + 2;
  RESCALED_ROUND(13) RESCALED_ROUND(15) RESCALED_ROUND(26) RESCALED_ROUND(6) x0 += key0, x1 += key1 + 3;
  RESCALED_ROUND(17)
  return x0;
}
#undef RESCALED_ROUND

// A score is kept when its 24 random bits reach this.
RESCALED_HOST_DEVICE uint32_t dropout_threshold(double dropout_p) {
  const double bits = dropout_p * 16777216.0;
  const uint32_t floor = static_cast<uint32_t>(bits);
  return floor < bits ? floor + 1 : floor;
}
RESCALED_HOST_DEVICE bool dropout_keeps(uint32_t seed_low, uint32_t seed_high, uint32_t query, uint32_t key,
                                        uint32_t threshold) {
  return (threefry(seed_low, seed_high, query, key) >> 8) >= threshold;
}

}  // namespace rescaled
