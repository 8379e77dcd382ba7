// SPDX-License-Identifier: BSD-3-Clause
// JVP: the outputs' derivatives along tangents of query, key, value and bias (docs/math.md (2)). 6 units of work.
#include "kernels.cuh"
#include "walk.cuh"
#include "weights.cuh"

namespace rescaled {
namespace {

template <class T, Kinds kKinds, Path kPath>
RESCALED_DEVICE void jvp_block(const AttentionParameters& p, const Plan& plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, Pass::jvp, kPath, kKinds>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const int64_t b = walk.take_place();
  walk.set_problem(b);
  const Elementwise<S>& masks = walk.problems[0].masks;
  walk.load_rows();

  const S scale = static_cast<S>(p.scale * kLog2e), tangent_scale = static_cast<S>(p.scale);
  const InputView normalizers = matrix(p.saved_log_normalizer, p, b);
  QueryNumbers<S> numbers[2];
  RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
    const int query = walk.row(r);
    set_normalizer(numbers[r], query < p.queries ? number_at<S>(normalizers, query * normalizers.row) : -infinity<S>());
  }
  typename W::Outputs out = {};
  S log_tangent[2] = {}, balance_tangent[2] = {};  // ld and the sum of r Sd + a betad
  walk.pipeline(
      walk.last_tile(), [&](int i, int stage) { walk.load_columns(stage, i * W::kColumns); },
      [&](int i, int stage, auto next) {
        const int first = i * W::kColumns;
        typename W::Scores score, tangent;
        walk.begin_products();
        walk.template product<false>(score, 0, 0, stage, first);
        walk.template product<false>(tangent, 2, 0, stage, first);
        walk.template product<false, true>(tangent, 0, 2, stage, first);
        walk.end_products();
        next.load();
        walk.settle();
        const auto weigh = [&](const auto& values, int j, int x, S& product, S& tangent_product) {
          const Weights<S> w = weights_of<T, kKinds>(p.kind, product, scale, values, j, x, numbers[x / 2]);
          const S score_tangent = tangent_product * tangent_scale, bias_tangent = values.tangent(j, x);
          const S drop = values.dropout(j, x), moved = w.r * score_tangent + w.a * bias_tangent;
          log_tangent[x / 2] += w.odd * score_tangent + w.even * bias_tangent;
          balance_tangent[x / 2] += moved;
          product = w.a * drop, tangent_product = moved * drop;
        };
        each_element(walk, masks, first, elements_of(walk, masks, first), weigh, score, tangent);
        next.announce();
        walk.accumulate(out, tangent, 1, stage, first);
        walk.accumulate(out, score, 3, stage, first);
        walk.settle();
      });

  const InputView balances = matrix(p.saved_balance, p, b);
  const OutputView balance = matrix(p.balance, p, b), log_normalizer = matrix(p.log_normalizer, p, b);
  RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
    log_tangent[r] = row_sum(log_tangent[r]), balance_tangent[r] = row_sum(balance_tangent[r]);
    const int query = walk.row(r);
    if (query >= p.queries || walk.first_output != 0 || walk.t != 0) continue;
    store_at<S>(balance, query * balance.row,
                balance_tangent[r] - log_tangent[r] * number_at<S>(balances, query * balances.row));
    store_at<S>(log_normalizer, query * log_normalizer.row, log_tangent[r]);
  }
  walk.store(out, matrix(p.output, p, b), p.value_size, S(1), matrix(p.saved_output, p, b), log_tangent);
}
template <class T, Kinds kKinds, Path kPath>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    jvp_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  if constexpr (kIsCompiled<kPath>) jvp_block<T, kKinds, kPath>(p, plan);
}

}  // namespace

const char* attention_jvp(const AttentionParameters& p, void* stream) {
  return with_element_type(p.query.dtype, [&](auto element) {
    using T = decltype(element);
    const Plan plan = plan_of<T>(p, Pass::jvp, this_device());
    return launch_walk<T>(p, plan, stream, [](auto path, auto kinds) {
      return jvp_walk<T, decltype(kinds)::value, decltype(path)::value>;
    });
  });
}

}  // namespace rescaled
