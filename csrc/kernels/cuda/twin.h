// SPDX-License-Identifier: BSD-3-Clause
// CUDA's execution model on one thread of the CPU, so that the kernels' own source is tested without a GPU: the threads
// of a block are fibers, switched where they wait for each other. Each warp runs as far as it can before the next one
// does, in forward or in reverse order (RESCALED_TWIN_REVERSE=1): what a missing barrier leaves unwritten is then read.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <vector>

#define __global__
#define __launch_bounds__(threads, blocks)
#define __grid_constant__
#define RESCALED_DEVICE static inline
#define RESCALED_MEMBER inline
#define RESCALED_SHARED(name) unsigned char* name = rescaled::twin::block().shared.data()

namespace rescaled::twin {

struct Copy {  // of 16 bytes, pending until it is waited for
  void* to;
  const void* from;
};

enum class Wait { nothing, warp, block, pair, done };

struct Fiber {
  ucontext_t start;
  jmp_buf at;
  std::unique_ptr<char[]> stack;
  bool started = false;
  Wait wait = Wait::nothing;
  int parity = 0;                         // of the exchanges of its warp
  int pair = 0;                           // the barrier of two warpgroups that it waits at
  std::vector<std::vector<Copy>> groups;  // committed
  std::vector<Copy> copies;               // not yet
};

constexpr int kStackBytes = 256 << 10, kExchangeBytes = 64;

struct Block {
  std::vector<Fiber> fibers;
  std::vector<unsigned char> shared;
  std::vector<unsigned char> exchange;  // [2][fibers][kExchangeBytes]
  jmp_buf scheduler;
  std::function<void()> body;
  int threads = 0, current = 0, index = 0;
  int arrived[16] = {}, waiting[16] = {};  // at the barriers of two warpgroups
};
inline Block& block() {
  static Block one;
  return one;
}
inline std::mutex& one_at_a_time() {
  static std::mutex mutex;
  return mutex;
}
inline bool reversed() { return std::getenv("RESCALED_TWIN_REVERSE") != nullptr; }

inline void yield(Wait wait) {
  Block& b = block();
  Fiber& f = b.fibers[b.current];
  f.wait = wait;
  if (_setjmp(f.at) == 0) _longjmp(b.scheduler, 1);
}
inline void entry() {
  block().body();
  Block& b = block();
  b.fibers[b.current].wait = Wait::done;
  _longjmp(b.scheduler, 1);
}
inline void resume(int i) {
  Block& b = block();
  Fiber& f = b.fibers[i];
  b.current = i;
  if (_setjmp(b.scheduler) != 0) return;
  if (!f.started) {
    f.started = true;
    setcontext(&f.start);
  }
  _longjmp(f.at, 1);
}

inline void run_block(int threads) {
  Block& b = block();
  b.threads = threads;
  if (static_cast<int>(b.fibers.size()) < threads) b.fibers.resize(threads);
  b.exchange.resize(2 * threads * kExchangeBytes);
  for (int i = 0; i < threads; ++i) {
    Fiber& f = b.fibers[i];
    if (!f.stack) f.stack = std::make_unique<char[]>(kStackBytes);
    getcontext(&f.start);
    f.start.uc_stack = {f.stack.get(), 0, kStackBytes};
    f.start.uc_link = nullptr;
    makecontext(&f.start, entry, 0);
    f.started = false, f.wait = Wait::nothing, f.parity = 0;
    f.groups.clear(), f.copies.clear();
  }
  for (int id = 0; id < 16; ++id) b.arrived[id] = b.waiting[id] = 0;
  const int warps = threads / 32;
  const bool backwards = reversed();
  int live = threads;
  while (live > 0) {
    bool moved = false;
    for (int v = 0; v < warps; ++v) {
      const int first = 32 * (backwards ? warps - 1 - v : v);
      for (bool again = true; again;) {
        again = false;
        int waiting = 0;
        for (int lane = 0; lane < 32; ++lane) {
          const int i = first + (backwards ? 31 - lane : lane);
          if (b.fibers[i].wait == Wait::nothing) {
            resume(i);
            again = moved = true;
            live -= b.fibers[i].wait == Wait::done;
          }
          waiting += b.fibers[i].wait == Wait::warp;
        }
        if (waiting == 32)
          for (int i = first; i < first + 32; ++i) b.fibers[i].wait = Wait::nothing;
        again = waiting == 32;
      }
    }
    for (int id = 0; id < 16; ++id) {
      if (b.arrived[id] > 128) throw std::runtime_error("twin: a barrier of two warpgroups is reached twice by one");
      if (b.arrived[id] < 128 || b.waiting[id] < 128) continue;
      b.arrived[id] = b.waiting[id] = 0;
      for (int i = 0; i < threads; ++i)
        if (b.fibers[i].wait == Wait::pair && b.fibers[i].pair == id) b.fibers[i].wait = Wait::nothing, moved = true;
    }
    int waiting = 0;
    for (int i = 0; i < threads; ++i) waiting += b.fibers[i].wait == Wait::block;
    if (waiting == threads) {
      for (int i = 0; i < threads; ++i) b.fibers[i].wait = Wait::nothing;
      moved = true;
    }
    if (!moved && live > 0) throw std::runtime_error("twin: threads wait at different barriers, or for one that left");
  }
}

// Every lane of the warp posts `value`, and may then read what the others posted until it posts again.
template <class T>
class Exchange {
 public:
  explicit Exchange(const T& value) {
    static_assert(sizeof(T) <= kExchangeBytes);
    Block& b = block();
    Fiber& f = b.fibers[b.current];
    f.parity ^= 1;
    base_ = b.exchange.data() + (f.parity * b.threads + b.current / 32 * 32) * kExchangeBytes;
    std::memcpy(base_ + b.current % 32 * kExchangeBytes, &value, sizeof value);
    yield(Wait::warp);
  }
  const T& of(int lane) const { return *reinterpret_cast<const T*>(base_ + lane * kExchangeBytes); }

 private:
  unsigned char* base_;
};

}  // namespace rescaled::twin

namespace rescaled {

RESCALED_DEVICE int thread_index() { return twin::block().current; }
RESCALED_DEVICE int block_index() { return twin::block().index; }
RESCALED_DEVICE int block_threads() { return twin::block().threads; }
RESCALED_DEVICE uintptr_t shared_address(const void* p) { return reinterpret_cast<uintptr_t>(p); }
RESCALED_DEVICE void block_barrier() { twin::yield(twin::Wait::block); }
RESCALED_DEVICE void barrier_arrive(int id) { ++twin::block().arrived[id]; }
RESCALED_DEVICE void barrier_sync(int id) {
  ++twin::block().waiting[id];
  twin::block().fibers[twin::block().current].pair = id;
  twin::yield(twin::Wait::pair);
}
RESCALED_DEVICE void warp_barrier() { twin::yield(twin::Wait::warp); }

template <class T>
RESCALED_DEVICE T shuffle_xor(T value, int lanes) {
  const twin::Exchange<T> all(value);
  return all.of(thread_index() % 32 ^ lanes);
}

RESCALED_DEVICE int uniform(int value) { return twin::Exchange<int>(value).of(0); }
RESCALED_DEVICE bool any_lane(bool says) {
  const twin::Exchange<bool> all(says);
  bool any = false;
  for (int lane = 0; lane < 32; ++lane) any = any || all.of(lane);
  return any;
}

// Shared memory is filled with NaNs before a block starts: what is read must have been written.
template <class Kernel, class... Arguments>
const char* launch(Kernel kernel, int64_t blocks, int threads, int64_t shared_bytes, void*,
                   const Arguments&... arguments) {
  const std::lock_guard<std::mutex> lock(twin::one_at_a_time());
  twin::Block& b = twin::block();
  b.body = [&] { kernel(arguments...); };
  for (int64_t i = 0; i < blocks; ++i) {
    b.index = static_cast<int>(i);
    b.shared.assign(shared_bytes, 0xff);
    twin::run_block(threads);
  }
  return nullptr;
}

// Pretends to be a device of compute capability 8.0, of 9.0 with RESCALED_TWIN_WARPGROUPS, or with as much shared
// memory as RESCALED_TWIN_SHARED_BYTES says.
inline bool device_has_warpgroups() { return std::getenv("RESCALED_TWIN_WARPGROUPS") != nullptr; }
inline int64_t shared_bytes_of_device() {
  const char* text = std::getenv("RESCALED_TWIN_SHARED_BYTES");
  return text ? std::atoll(text) : (device_has_warpgroups() ? 227 : 163) * 1024;
}

}  // namespace rescaled
