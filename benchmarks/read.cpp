// SPDX-License-Identifier: BSD-3-Clause
// A pure read of memory, the limit of what reads a matrix once: a shared library with
//   double read_bytes(const void* data, size_t bytes, int threads)
// that loads every vector of `data` and adds it up.
#include <cstddef>
#include <cstdint>
#include <thread>
#include <vector>

using Vector = float __attribute__((vector_size(64), aligned(4)));
// Several streams at once: hardware prefetches within a page, and a thread waits less when it has more of them.
constexpr size_t kStreams = 4, kStep = 256;

static double read_part(const char* data, size_t bytes) {
  Vector sums[kStep / sizeof(Vector)] = {};
  const size_t part = bytes / kStreams / kStep * kStep;
  for (size_t i = 0; i < part; i += kStep)
    for (size_t stream = 0; stream < kStreams; ++stream)
      for (size_t k = 0; k < kStep / sizeof(Vector); ++k)
        sums[k] += *reinterpret_cast<const Vector*>(data + stream * part + i + k * sizeof(Vector));
  double sum = 0;
  for (const Vector& part_sum : sums)
    for (size_t k = 0; k < 16; ++k) sum += part_sum[k];
  return sum;
}

extern "C" double read_bytes(const void* data, size_t bytes, int threads) {
  std::vector<std::thread> pool;
  std::vector<double> sums(threads);
  const size_t part = bytes / threads / 512 * 512;
  for (int i = 0; i < threads; ++i)
    pool.emplace_back([=, &sums] { sums[i] = read_part(static_cast<const char*>(data) + i * part, part); });
  double sum = 0;
  for (int i = 0; i < threads; ++i) pool[i].join(), sum += sums[i];
  return sum;
}
