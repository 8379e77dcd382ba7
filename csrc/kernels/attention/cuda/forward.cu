// SPDX-License-Identifier: BSD-3-Clause
// Forward: W = sum_j a_ij V_j, rho, l, with a running maximum of the scores' exponents (docs/math.md (1)).
#include "kernels.cuh"
#include "walk.cuh"
#include "weights.cuh"

namespace rescaled {
namespace {

template <class T, Kinds kKinds, bool kResident>
__global__ void __launch_bounds__(32 * kMaxWarps, 1)
    forward_walk(const __grid_constant__ AttentionParameters p, const __grid_constant__ Plan plan) {
  RESCALED_SHARED(memory);
  using W = Walk<T, Pass::forward, kResident>;
  using S = typename W::S;
  W walk(p, plan, memory);
  const int64_t b = walk.take_place();
  walk.set_problem(b);
  const Elementwise<S>& masks = walk.problems[0].masks;
  walk.load_rows();

  const S scale = static_cast<S>(p.scale * kLog2e);
  const bool two_sided = kKinds == Kinds::two_sided || (kKinds == Kinds::all && p.kind != Kind::exp);
  typename W::Outputs out = {};
  S top[2] = {-infinity<S>(), -infinity<S>()}, sum[2] = {}, balance[2] = {};
  walk.pipeline(
      walk.last_tile(), [&](int64_t i, int stage) { walk.load_columns(stage, i * W::kColumns); },
      [&](int64_t i, int stage) {
        const int64_t first = i * W::kColumns;
        typename W::Scores score = {};
        walk.template product<false>(score, 0, 0, stage, first, 0);
        ElementValues<S, W::kTiles> values;
        fill_values(walk, masks, first, false, values);
        // Scores in units of log 2, and the exponents' maximum.
        S highest[2] = {-infinity<S>(), -infinity<S>()};
        RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
          const S s = score[j][x] *= scale;
          const S size = two_sided && s < 0 ? -s : s;
          const S level = size + values.log_weight(j, x);
          if (!(level <= highest[x / 2])) highest[x / 2] = level;  // a NaN stays
        }
        QueryNumbers<S> base[2];
        RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
          const S before = top[r], level = row_max(highest[r]);
          if (!(level <= before)) top[r] = level;
          const S shift = top[r] == -infinity<S>() ? S(0) : top[r];
          base[r].shift = shift, base[r].exponent = -shift, base[r].factor = S(1);
          if (two_sided) {
            const cuda::Weight<S> w = cuda::split_weight<S>(-shift);
            base[r].exponent = w.exponent, base[r].factor = w.factor;
          }
          const S rescale = exp2_of(before - shift);
          sum[r] *= rescale, balance[r] *= rescale;
          RESCALED_UNROLL for (int j = 0; j < W::kOut; ++j) out[j][2 * r] *= rescale, out[j][2 * r + 1] *= rescale;
        }
        RESCALED_UNROLL for (int j = 0; j < W::kTiles; ++j) RESCALED_UNROLL for (int x = 0; x < 4; ++x) {
          const Weights<S> w =
              weights_of<S, kKinds>(p.kind, score[j][x], values.weighted, values.log_weight(j, x), base[x / 2]);
          sum[x / 2] += w.even, balance[x / 2] += w.a;
          score[j][x] = w.a * values.dropout(j, x);
        }
        walk.accumulate(out, score, 1, stage, first);
      });

  S inverse[2];
  const OutputView balances = matrix(p.balance, p, b), normalizers = matrix(p.log_normalizer, p, b);
  RESCALED_UNROLL for (int r = 0; r < 2; ++r) {
    sum[r] = row_sum(sum[r]), balance[r] = row_sum(balance[r]);
    const bool keyless = sum[r] == S(0);
    inverse[r] = keyless ? S(0) : 1 / sum[r];
    const int64_t query = walk.row(r);
    if (walk.first_output == 0 && walk.t == 0 && query < p.queries) {
      store_at<S>(balances, query * balances.row, keyless ? S(0) : balance[r] / sum[r]);
      store_at<S>(normalizers, query * normalizers.row,
                  keyless ? -infinity<S>() : top[r] * static_cast<S>(kLn2) + natural_log(sum[r]));
    }
    RESCALED_UNROLL for (int j = 0; j < W::kOut; ++j) out[j][2 * r] *= inverse[r], out[j][2 * r + 1] *= inverse[r];
  }
  walk.store(out, matrix(p.output, p, b), p.value_size, S(1));
}

}  // namespace

const char* attention_forward(const AttentionParameters& p, void* stream) {
  return with_element_type(p.query.dtype, [&](auto element) {
    using T = decltype(element);
    const Plan plan = plan_of<T>(p, Pass::forward, shared_bytes_of_device());
    return launch_walk(p, plan, stream, forward_walk<T, Kinds::exp, true>, forward_walk<T, Kinds::two_sided, true>,
                       forward_walk<T, Kinds::all, false>);
  });
}

}  // namespace rescaled
