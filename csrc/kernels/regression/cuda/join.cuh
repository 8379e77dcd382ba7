// SPDX-License-Identifier: BSD-3-Clause
// Parts of a problem joined into one, in their order: sums, and vectors, each with an exponent and a center of its own.
#pragma once
#include "rows.cuh"

#if defined(RESCALED_TWIN)
#define RESCALED_UNROLL_8
#else
#define RESCALED_UNROLL_8 _Pragma("unroll 8")
#endif

namespace rescaled {
namespace {

// In shared memory: what brings each part to the common exponent and the first one's center.
template <int kMost>
struct Joint {
  double factor[kMost], by[kMost];
  Sums part[kMost], all;
};

// All threads of the block; `count` at most kMost. The result is there for all of them.
template <int kMost>
RESCALED_DEVICE void join_parts(Joint<kMost>& joint, const Sums* parts, int count) {
  for (int i = thread_index(); i < count; i += block_threads()) {
    double exponent = parts[0].exponent;
    for (int k = 1; k < count; ++k) exponent = parts[k].exponent > exponent ? parts[k].exponent : exponent;
    Sums s = parts[i];
    const double center = parts[0].center * cuda::power_of_two(parts[0].exponent - exponent);
    joint.factor[i] = cuda::power_of_two(s.exponent - exponent);
    cuda::rescale(s, exponent);
    joint.by[i] = s.center - center;
    cuda::recenter(s, center);
    joint.part[i] = s;
  }
  block_barrier();
  if (thread_index() == 0) {
    Sums s = joint.part[0];
    for (int i = 1; i < count; ++i) cuda::join_sums(s, joint.part[i]);
    joint.all = s;
  }
  block_barrier();
}

// Number k of the joined vectors at a column, get(part, k) being the parts'.
template <Vectors kVectors, int kMost, class Get>
RESCALED_DEVICE double joined(const Joint<kMost>& joint, int count, int k, Get get) {
  const bool scales = k < kVectorCount<kVectors>;  // the penalty does not
  const Degree degree = scales ? cuda::degree_of<kVectors>(k) : Degree::none;
  const int other = scales ? cuda::target_of<kVectors>(k) : -1;
  double sum = 0;
  RESCALED_UNROLL_8 for (int i = 0; i < count; ++i) {  // eight loads under way
    const double factor = joint.factor[i];
    double value = cuda::scaled(static_cast<double>(get(i, k)), degree, factor);
    if (other >= 0) value += joint.by[i] * (static_cast<double>(get(i, other)) * factor);
    sum += value;
  }
  return sum;
}

}  // namespace
}  // namespace rescaled
