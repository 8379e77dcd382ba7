// SPDX-License-Identifier: BSD-3-Clause
// Forward mode: tangents of W, balance and log_normalizer along tangents of query, key, value and bias, in one pass
// over the keys with the log_normalizer known. Lanes are queries, as in the forward.
#include "panel.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class E, class T = Sum<E>>
struct JvpPanel {
  E *query, *tangent_query;                 // [D][lanes]
  T* output;                                // [Dv][lanes]
  T *shift, *exponent, *factor;             // [lanes] log2 of the normalizer; 2^-shift = factor 2^exponent
  T *tangent_normalizer, *tangent_balance;  // [lanes] sums n Sd + p betad, and ud
};

template <class E>
struct JvpScratch : PanelScratch<E> {
  using T = Sum<E>;
  JvpPanel<E> panels[kPanelsPerTask];
  T *weights, *score_weights, *score_tangents, *bias_tangents;  // [kKeyBlock][lanes]
  E *pairs, *tangent_pairs;
  JvpScratch(const AttentionParameters& p, Arena& arena) : PanelScratch<E>(p, arena) {
    constexpr int64_t lanes = kPanel<E>;
    const int64_t depth = depth_of<E>(p.head_size);
    for (int i = 0; i < kPanelsPerTask; ++i)
      panels[i] = {arena.take<E>(depth * lanes),
                   arena.take<E>(p.tangent_query ? depth * lanes : 0),
                   arena.take<T>(round_up(p.value_size, kTileRows) * lanes),
                   arena.take<T>(lanes),
                   arena.take<T>(lanes),
                   arena.take<T>(lanes),
                   arena.take<T>(lanes),
                   arena.take<T>(lanes)};
    for (T** block : {&weights, &score_weights, &score_tangents, &bias_tangents})
      *block = arena.take<T>(kKeyBlock * lanes);
    for (E** block : {&pairs, &tangent_pairs}) *block = arena.take<E>(kPairs<E> ? kKeyBlock / 2 * lanes : 0);
  }
};

// Scores to weights a, tangents of scores to those of u / c, in place; their sums.
template <class E, bool kTwoSided, int kVectors, class T = Sum<E>>
static __attribute__((noinline)) void jvp_weights(bool odd_kind, int64_t rows, T score_factor, T tangent_factor,
                                                  const T* weights, const T* bias_tangents, JvpPanel<E>& panel,
                                                  T* scores, T* tangents) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  Vec<T> normalizer[kVectors] = {}, balance[kVectors] = {};
  for (int64_t r = 0; r < rows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t lane = j * kLanes<T>, at = r * lanes + lane;
      const Vec<T> t = scaled<E>(score_factor, load(scores + at)), shift = load(panel.shift + lane);
      const Vec<T> st = load(tangents + at) * tangent_factor;
      const Vec<T> bt = bias_tangents ? load(bias_tangents + at) : Vec<T>{};
      Vec<T> ud;
      if constexpr (!kTwoSided) {
        const Vec<T> a = exp2_vector<T>(weights ? (t + load(weights + at)) - shift : t - shift);
        ud = a * (st + bt);
        normalizer[j] += ud;
        store<T>(scores + at, a);
      } else {
        const Weight<T> weight = weights ? split_weight<T>(load(weights + at) - shift)
                                         : Weight<T>{load(panel.exponent + lane), load(panel.factor + lane)};
        Vec<T> even, odd;
        two_sided<T>(t, weight.exponent, even, odd);
        even *= weight.factor, odd *= weight.factor;
        normalizer[j] += odd * st + even * bt;  // n = odd, p = even for cosh and sinh
        const Vec<T> a = odd_kind ? odd : even, r_weight = odd_kind ? even : odd;
        ud = r_weight * st + a * bt;
        balance[j] += ud;
        store<T>(scores + at, a);
      }
      store<T>(tangents + at, ud);
    }
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    T *n = panel.tangent_normalizer + j * kLanes<T>, *b = panel.tangent_balance + j * kLanes<T>;
    store<T>(n, load(n) + normalizer[j]);
    store<T>(b, load(b) + balance[j]);
  }
}

template <class E, bool kTwoSided, int kVectors>
static void jvp_block(const AttentionParameters& p, const Problem& problem, Block block, const BlockRows<E>& in,
                      JvpPanel<E>& panel, JvpScratch<E>& s) {
  using T = Sum<E>;
  constexpr int64_t lanes = kVectors * kLanes<T>;
  const Rows<E> none{nullptr, 0};
  const int64_t depth = depth_of<E>(p.head_size);
  product_block<E, kVectors>(block.rows, depth, false, in.key, panel.query, s.score_weights);
  product_sum<E, kVectors>(block.rows, depth, p.tangent_query ? in.key : none, panel.tangent_query, in.tangent_key,
                           panel.query, s.score_tangents);
  const bool has_weights = weighted(p, block.query, block.key + block.rows - 1);
  if (has_weights) fill_log_weights<T, Lanes::queries>(p, problem.bias, problem.mask, block, s.weights, lanes);
  if (p.tangent_bias) fill_elements<T, Lanes::queries>(problem.tangent_bias, block, T(1), s.bias_tangents, lanes);
  jvp_weights<E, kTwoSided, kVectors>(p.kind == Kind::sinh, block.rows, score_scale<E>(p), tangent_scale<E>(p),
                                      has_weights ? s.weights : nullptr, p.tangent_bias ? s.bias_tangents : nullptr,
                                      panel, s.score_weights, s.score_tangents);
  if (p.dropout_p > 0) {
    fill_dropout<T, Lanes::queries>(p, problem.seed, block, s.weights, lanes);
    for (T* x : {s.score_weights, s.score_tangents}) multiply_by<T>(s.weights, block.rows * lanes, x);
  }
  const bool scores_move = p.tangent_query || p.tangent_key || p.tangent_bias;
  accumulate_values<E, kVectors>(block.rows, p.value_size, scores_move ? in.value : none,
                                 weight_factors<E, kVectors>(block.rows, s.score_tangents, s.tangent_pairs),
                                 in.tangent_value, weight_factors<E, kVectors>(block.rows, s.score_weights, s.pairs),
                                 nullptr, panel.output);
}

template <class E>
static void jvp_start(const AttentionParameters& p, const Problem& problem, int64_t b, int64_t first, int64_t count,
                      int64_t lanes, JvpPanel<E>& panel) {
  using T = Sum<E>;
  const T scale = packed_scale<E>(p);
  pack_panel<E>(from_row(problem.query, first), count, p.head_size, scale, panel.query, lanes);
  if (p.tangent_query)
    pack_panel<E>(from_row(problem.tangent_query, first), count, p.head_size, scale, panel.tangent_query, lanes);
  std::memset(panel.output, 0, sizeof(T) * round_up(p.value_size, kTileRows) * lanes);
  const InputView log_normalizer = matrix(p.saved_log_normalizer, p, b);
  for (int64_t x = 0; x < lanes; ++x) {
    panel.shift[x] = x < count ? row_shift<T>(element(log_normalizer, first + x)) : T(0);
    panel.tangent_normalizer[x] = panel.tangent_balance[x] = 0;
  }
  for (int64_t x = 0; x < lanes; x += kLanes<T>) {
    const Weight<T> weight = split_weight<T>(-load(panel.shift + x));
    store<T>(panel.exponent + x, weight.exponent), store<T>(panel.factor + x, weight.factor);
  }
}

template <class E>
static void jvp_finish(const AttentionParameters& p, int64_t b, int64_t first, int64_t count, int64_t lanes,
                       const JvpPanel<E>& panel) {
  using T = Sum<E>;
  const OutputView output = matrix(p.output, p, b), balance = matrix(p.balance, p, b),
                   log_normalizer = matrix(p.log_normalizer, p, b);
  const InputView saved = matrix(p.saved_output, p, b), saved_balance = matrix(p.saved_balance, p, b);
  for (int64_t i = 0; i < count; ++i) {
    const T ld = panel.tangent_normalizer[i];
    with_type(saved.dtype, saved.data, [&](auto* w) {
      for (int64_t d = 0; d < p.value_size; ++d)
        panel.output[d * lanes + i] -= ld * static_cast<T>(value_of(w[(first + i) * saved.row + d * saved.column]));
    });
    static_cast<T*>(log_normalizer.data)[(first + i) * log_normalizer.row] = ld;
    static_cast<T*>(balance.data)[(first + i) * balance.row] =
        p.kind == Kind::sinh ? panel.tangent_balance[i] - ld * static_cast<T>(element(saved_balance, first + i)) : T(0);
  }
  unpack_panel<E>(row_of(output, first), count, p.value_size, T(1), panel.output, lanes);
}

struct Jvp {
  template <class E>
  using Scratch = JvpScratch<E>;
  template <class E, bool kTwoSided>
  static void task(const AttentionParameters& p, int64_t task, Scratch<E>& s) {
    if (p.bias || p.mask || p.tangent_bias) clear_blocks<Sum<E>>({s.weights, s.bias_tangents});
    walk_panels<E>(
        p, task, s,
        [&](const Problem& problem, int64_t b, int i, int64_t first, int64_t count) {
          jvp_start<E>(p, problem, b, first, count, panel_lanes<E>(count), s.panels[i]);
        },
        [&](const Problem& problem, const BlockRows<E>& in, int i, Block block, auto vectors) {
          jvp_block<E, kTwoSided, decltype(vectors)::value>(p, problem, block, in, s.panels[i], s);
        },
        [&](int64_t b, int i, int64_t first, int64_t count) {
          jvp_finish<E>(p, b, first, count, panel_lanes<E>(count), s.panels[i]);
        });
  }
};

}  // namespace

AttentionProgram attention_jvp(const AttentionParameters& p) { return panel_program<Jvp>(p); }

}  // namespace rescaled::RESCALED_ISA
