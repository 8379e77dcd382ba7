// SPDX-License-Identifier: BSD-3-Clause
// The passes on the host, put together by run.cu. Each enqueues its kernel and returns the name of an error, or
// nullptr.
#pragma once
#include "../../cuda/device.cuh"
#include "plan.h"

namespace rescaled {

const char* map_statistics(const MatrixRegressionParameters&, void* stream);
const char* map_rows(MatrixPass, const MatrixRegressionParameters&, void* stream);      // gradient, moments, product
const char* map_tangents(MatrixPass, const MatrixRegressionParameters&, void* stream);  // tangents, gradient_tangent
const char* map_columns(const MatrixRegressionParameters&, void* stream);
const char* map_elements(const MatrixRegressionParameters&, void* stream);

// The twin, which has no time for as many blocks, can be told that fewer are many.
inline int64_t many_blocks() {
#if defined(RESCALED_TWIN)
  if (const char* text = std::getenv("RESCALED_TWIN_MANY_BLOCKS")) return std::atoll(text);
#endif
  return kManyBlocks;
}

// kernel(T): the kernel of an element type.
template <class Kernel>
const char* launch_map(MatrixPass pass, const MatrixRegressionParameters& p, void* stream, Kernel kernel) {
  const auto run = [&](auto element) {
    const MapPlan plan = map_plan<decltype(element)>(p, pass, shared_bytes_of_device(), many_blocks());
    return launch(kernel(element), plan.blocks, 32 * warps_of(plan), plan.shared_bytes, stream, p, plan);
  };
  return p.scores.query.dtype == DType::float64 ? run(double{}) : run(float{});
}

}  // namespace rescaled
