// SPDX-License-Identifier: BSD-3-Clause
// A v of a sparse A: a row by neighboring lanes.
#include "rows.cuh"

namespace rescaled {
namespace {

template <class T, class Index>
__global__ void __launch_bounds__(kThreads, 1)
    csr_matvec_walk(const __grid_constant__ CsrParameters p, const __grid_constant__ WalkPlan plan) {
  using S = Number<T>;
  const int64_t problem = block_index() / plan.chunks, chunk = block_index() % plan.chunks;
  const int64_t row = (chunk * kThreads + thread_index()) / plan.lanes;
  const int lane = thread_index() % plan.lanes;
  const SparseRows<T, Index> a(p, problem);
  const InputView v = matrix(p.v, p, problem);
  const S* const x = static_cast<const S*>(v.data);
  S sum = 0;
  if (row < p.rows) {
    const auto span = a.span(row);
    if (!span.good) sum = static_cast<S>(__builtin_nan(""));
    for (int64_t k = span.begin + lane; k < span.end; k += kBatch * plan.lanes) {
      const Batch<T, Index> batch(a, k, span.end, plan.lanes);
      RESCALED_UNROLL for (int i = 0; i < kBatch; ++i) sum += batch.there[i] ? batch.value[i] * x[batch.column[i] * v.row] : S(0);
      if (batch.outside) sum = static_cast<S>(__builtin_nan(""));
    }
  }
  for (int bit = 1; bit < plan.lanes; bit *= 2) sum += shuffle_xor(sum, bit);
  const OutputView out = matrix(p.products, p, problem);
  if (row < p.rows && lane == 0) static_cast<S*>(out.data)[row * out.row] = sum;
}

}  // namespace

const char* csr_matvec(const CsrParameters& p, const WalkPlan& given, void* stream) {
  WalkPlan plan = given;
  if (plan.lanes > 2) plan.lanes /= 2;  // two batches of a lane are faster than one
  plan.chunks = (p.rows * plan.lanes + kThreads - 1) / kThreads;
  return with_types(p, [&](auto element, auto index) {
    return launch(csr_matvec_walk<decltype(element), decltype(index)>, p.batches * plan.chunks, kThreads, 0, stream, p, plan);
  });
}

}  // namespace rescaled
