// SPDX-License-Identifier: BSD-3-Clause
// Sums of integers that a block keeps in shared memory: those that came first in their slot.
#pragma once
#include "atomics.cuh"
#include "passes.cuh"

namespace rescaled {
namespace {

template <int kCount>  // words of a key's sum
struct Table {
  int32_t* tags;    // the key, or -1
  uint32_t* parts;  // low, high
  int slots;        // a power of two, or 0: everything goes to global memory
  static constexpr int kSlotBytes = 4 + 8 * kCount;

  // Empty after the next barrier.
  RESCALED_MEMBER Table(unsigned char* memory, int count)
      : tags(reinterpret_cast<int32_t*>(memory)), parts(reinterpret_cast<uint32_t*>(tags + count)), slots(count) {
    for (int i = thread_index(); i < slots; i += kThreads) tags[i] = -1;
    for (int i = thread_index(); i < slots * kCount * 2; i += kThreads) parts[i] = 0;
  }
  // The slot of a key, or -1. Keys below the number of slots never meet.
  RESCALED_MEMBER int find(int64_t key) const {
    if (slots == 0) return -1;
    const int slot = static_cast<int>((key ^ key >> 11) & (slots - 1));
    const int32_t wanted = static_cast<int32_t>(key);
    int32_t tag = *static_cast<volatile int32_t*>(tags + slot);
    if (tag == -1 && (tag = exchange_if(tags + slot, -1, wanted)) == -1) tag = wanted;
    return tag == wanted ? slot : -1;
  }
  // To a word of the slot that was found, or in global memory. Additions of 64 bits are native there alone: in shared
  // memory the carry goes by hand.
  RESCALED_MEMBER void add(int slot, int word, uint64_t* sum, uint64_t x) const {
    if (x == 0) return;
    if (slot < 0) return add_to(sum, x);
    uint32_t* const to = parts + (slot * kCount + word) * 2;
    const uint32_t low = static_cast<uint32_t>(x);
    const uint32_t carry = low != 0 && fetch_add(to, low) + low < low ? 1 : 0;
    const uint32_t high = static_cast<uint32_t>(x >> 32) + carry;
    if (high != 0) fetch_add(to + 1, high);
  }
  // After a barrier: adds everything to the sums in global memory.
  RESCALED_MEMBER void flush(uint64_t* sums) const {
    for (int i = thread_index(); i < slots * kCount; i += kThreads) {
      const int32_t key = tags[i / kCount];
      const uint64_t part = parts[2 * i] + (uint64_t{parts[2 * i + 1]} << 32);
      if (key >= 0 && part != 0) add_to(sums + int64_t{key} * kCount + i % kCount, part);
    }
  }
};

// Slots for `keys` that a block can meet, if each of its `terms` is likely to find its key there; else 0.
RESCALED_HOST_DEVICE int slots_of(int64_t keys, double terms, int slot_bytes) {
  int slots = 32;
  while (slots < keys && 2 * slots * slot_bytes <= 24 << 10) slots *= 2;
  return keys > INT32_MAX || terms < 4 * slots ? 0 : slots;
}

}  // namespace
}  // namespace rescaled
