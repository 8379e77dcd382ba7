// SPDX-License-Identifier: BSD-3-Clause
// The error of the kernels' exponentials, in units in the last place, at every stride-th float (1: at every one) of the
// range that weights use, and at a hundred million / stride doubles, against the C library in the next larger type.
//
//   exponentials [stride]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <thread>
#include <vector>

#include "../../csrc/kernels/cpu/simd.h"
// Constants and templates over the vectors above.
#include "../../csrc/kernels/element.h"
#include "../../csrc/kernels/phi.h"

namespace {
using namespace rescaled::RESCALED_ISA;

struct Worst {
  double ulp = 0, at = 0;
  void see(double error, double t) {
    if (!(error <= ulp)) ulp = error, at = t;
  }
};

template <class T, class Wide>
double ulps(T got, Wide expected) {
  const int exponent = std::max(std::ilogb(expected), std::numeric_limits<T>::min_exponent - 1);
  return static_cast<double>(
      std::fabs(std::scalbn(static_cast<Wide>(got) - expected, std::numeric_limits<T>::digits - 1 - exponent)));
}

// sinh(t ln 2) and cosh(t ln 2) from 2^t, without the cancellation of small t.
template <class Wide>
Wide odd_part(Wide t, Wide power) {
  if (std::fabs(t) > Wide(0x1p-10)) return (power - 1 / power) / 2;
  const Wide y = t * Wide(0.693147180559945309417232121458176568L), g = y * y;
  return y * (1 + g / 6 * (1 + g / 20 * (1 + g / 42)));
}

constexpr int kFunctions = 3;
const char* const kNames[kFunctions] = {"exp", "even", "odd"};

// The points from(first), from(first + step), ...
template <class T, class Wide, class From>
void sweep(uint64_t first, uint64_t last, uint64_t step, From from, Worst* worst) {
  constexpr int lanes = kLanes<T>;
  for (uint64_t i = first; i < last; i += step * lanes) {
    Vec<T> t = {}, even, odd;
    for (int k = 0; k < lanes; ++k) t[k] = from(std::min(i + k * step, last - 1));
    const Vec<T> power = exp2_vector<T>(t);
    two_sided<T>(t, Vec<T>{}, even, odd);
    for (int k = 0; k < lanes; ++k) {
      const Wide w = t[k], expected = std::exp2(w);
      worst[0].see(ulps(power[k], expected), t[k]);
      worst[1].see(ulps(even[k], (expected + 1 / expected) / 2), t[k]);
      if (t[k] != 0) worst[2].see(ulps(odd[k], odd_part(w, expected)), t[k]);
    }
  }
}

template <class T, class Wide, class From>
void report(const char* name, uint64_t points, uint64_t stride, From from) {
  const uint64_t threads = std::max(1u, std::thread::hardware_concurrency()), part = points / threads + 1;
  std::vector<Worst> worst(threads * kFunctions);
  std::vector<std::thread> running;
  for (uint64_t n = 0; n < threads; ++n)
    running.emplace_back(
        [&, n] { sweep<T, Wide>(n * part, std::min(points, (n + 1) * part), stride, from, &worst[n * kFunctions]); });
  for (std::thread& thread : running) thread.join();
  for (int f = 0; f < kFunctions; ++f) {
    Worst all;
    for (uint64_t n = 0; n < threads; ++n) all.see(worst[n * kFunctions + f].ulp, worst[n * kFunctions + f].at);
    std::printf("%s %s: %.3f ulp at %a\n", kNames[f], name, all.ulp, all.at);
  }
}

float as_float(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// Weights below the smallest normal number are zero, and so are those of masked keys; NaN stays.
template <class T>
bool check_ends() {
  const T inf = std::numeric_limits<T>::infinity(), nan = std::numeric_limits<T>::quiet_NaN();
  const T below = Simd<T>::kMinExponent - T(0.75);
  const auto power = [](T t) { return exp2_vector<T>(Vec<T>{} + t)[0]; };
  const Weight<T> masked = split_weight<T>(Vec<T>{} - inf);
  Vec<T> even, odd;
  two_sided<T>(Vec<T>{} + T(3.5), masked.exponent, even, odd);
  const bool good =
      power(below) == 0 && power(-inf) == 0 && std::isnan(power(nan)) && power(0) == 1 && even[0] == 0 && odd[0] == 0;
  if (!good) std::printf("FAILED: ends of the range\n");
  return good;
}
}  // namespace

int main(int count, char** arguments) {
  const uint64_t stride = count > 1 ? std::strtoull(arguments[1], nullptr, 10) : 1;
  // |t| <= 126: positive floats are ordered as their bits; odd numbers are the negative ones.
  uint32_t largest;
  const float end = 126;
  std::memcpy(&largest, &end, sizeof end);
  const uint64_t points = 100'000'000 / stride;
  report<float, double>("float", 2 * (uint64_t{largest} + 1), stride, [](uint64_t i) {
    return as_float(static_cast<uint32_t>(i / 2) | static_cast<uint32_t>(i % 2) << 31);
  });
  report<double, long double>("double", points, 1, [points](uint64_t i) {
    const double u = static_cast<double>(i) / static_cast<double>(points);  // dense near 0 and far away
    return i % 3 == 0 ? 2044 * u - 1022 : i % 3 == 1 ? 4 * u - 2 : std::ldexp(2 * u - 1, -static_cast<int>(i % 40));
  });
  return check_ends<float>() & check_ends<double>() ? 0 : 1;
}
