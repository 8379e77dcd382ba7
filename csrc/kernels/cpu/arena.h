// SPDX-License-Identifier: BSD-3-Clause
// Scratch memory, laid out by the same code that measures it (with no memory behind it).
#pragma once
#include <cstdint>

#include "simd.h"

namespace rescaled::RESCALED_ISA {
namespace {

class Arena {
 public:
  explicit Arena(void* base) : base_(reinterpret_cast<uintptr_t>(base)) {}
  template <class T>
  T* take(int64_t count) {
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + 63) / 64 * 64;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t used() const { return used_; }

 private:
  uintptr_t base_;
  int64_t used_ = 0;
};

template <class Layout, class Parameters>
RESCALED_INLINE int64_t bytes_of(const Parameters& p) {
  Arena arena(nullptr);
  Layout layout(p, arena);
  return arena.used();
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
