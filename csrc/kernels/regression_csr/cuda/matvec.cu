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
    const bool inside = for_values<2>(a, span.begin + lane, span.end, plan.lanes,
                                      [&](int64_t column, S value) { sum += value * x[column * v.row]; });
    if (!span.good || !inside) sum = static_cast<S>(__builtin_nan(""));
  }
  for (int bit = 1; bit < plan.lanes; bit *= 2) sum += shuffle_xor(sum, bit);
  const OutputView out = matrix(p.products, p, problem);
  if (row < p.rows && lane == 0) static_cast<S*>(out.data)[row * out.row] = sum;
}

}  // namespace

const char* csr_matvec(const CsrParameters& p, const WalkPlan& given, void* stream) {
  WalkPlan plan = given;
  if (plan.lanes > 2) plan.lanes /= 2;  // measured: a sum of rows is best with twice as many
  plan.chunks = (p.rows * plan.lanes + kThreads - 1) / kThreads;
  return with_types(p, [&](auto element, auto index) {
    return launch(csr_matvec_walk<decltype(element), decltype(index)>, p.batches * plan.chunks, kThreads, 0, stream, p,
                  plan);
  });
}

}  // namespace rescaled
