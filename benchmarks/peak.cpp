// SPDX-License-Identifier: BSD-3-Clause
// The machine's float32 FMA peak: independent accumulators in registers, nothing in memory.
// Usage: peak THREADS; prints GF/s of all threads together, the best of a few short runs.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <thread>
#include <utility>
#include <vector>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
#if defined(__x86_64__)
#define IN_REGISTER(x) asm volatile("" : "+v"(x))
#elif defined(__aarch64__)
#define IN_REGISTER(x) asm volatile("" : "+w"(x))
#endif

using Vector = float __attribute__((vector_size(kBytes)));
constexpr int kLanes = kBytes / sizeof(float);
constexpr int kAccumulators = 12;  // latency times units is at most 10 on the cores in use

inline void step(Vector& sum, Vector& x, const Vector& y) {
  IN_REGISTER(x);  // x may have changed: without this the product is computed once, and only added here
  sum += x * y;
  IN_REGISTER(sum);
}

template <size_t... I>
float multiply_add(long steps, std::index_sequence<I...>) {
  Vector x = {}, y = {}, sum[sizeof...(I)] = {};
  IN_REGISTER(y);
  for (; steps > 0; --steps) (step(sum[I], x, y), ...);  // constant indices: the array stays in registers
  return (sum[I][0] + ...);
}

int main(int count, char** arguments) {
  const int threads = count > 1 ? std::atoi(arguments[1]) : 1;
  constexpr long kSteps = 20'000'000;
  double best = 0;
  for (int repeat = 0; repeat < 5; ++repeat) {
    const auto start = std::chrono::steady_clock::now();
    std::vector<std::thread> pool;
    for (int i = 0; i < threads; ++i)
      pool.emplace_back([] {
        volatile float result = multiply_add(kSteps, std::make_index_sequence<kAccumulators>());
        (void)result;
      });
    for (std::thread& thread : pool) thread.join();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    best = std::max(best, 2.0 * kLanes * kAccumulators * kSteps * threads / seconds.count() / 1e9);
  }
  std::printf("%.1f\n", best);
}
