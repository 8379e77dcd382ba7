// SPDX-License-Identifier: BSD-3-Clause
// Forward and its tangents in one pass over the keys: the online reference of the forward, six units of work where the
// forward and the JVP after it take seven. Lanes are queries.
#include "online.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class E, class T = Sum<E>>
struct TangentPanel {
  E* query;  // of the tangents, as in ForwardPanel
  T* output;
  T *normalizer, *balance;  // [lanes] tangents of the sums of c and u
};

template <class E>
struct ForwardJvpScratch : PanelScratch<E> {
  using T = Sum<E>;
  ForwardPanel<E> panels[kPanelsPerTask];
  TangentPanel<E> tangents[kPanelsPerTask];
  T *weights, *scores, *score_tangents, *bias_tangents;  // [kKeyBlock][lanes]
  E *pairs, *tangent_pairs;
  ForwardJvpScratch(const AttentionParameters& p, Arena& arena) : PanelScratch<E>(p, arena) {
    constexpr int64_t lanes = kPanel<E>;
    for (int i = 0; i < kPanelsPerTask; ++i) {
      panels[i] = take_panel<E>(p, arena);
      tangents[i] = {p.tangent_query ? arena.take<E>(depth_of<E>(p.head_size) * lanes) : nullptr,
                     arena.take<T>(round_up(p.value_size, kTileRows) * lanes), arena.take<T>(lanes),
                     arena.take<T>(lanes)};
    }
    for (T** block : {&weights, &scores, &score_tangents, &bias_tangents}) *block = arena.take<T>(kKeyBlock * lanes);
    for (E** block : {&pairs, &tangent_pairs}) *block = arena.take<E>(kPairs<E> ? kKeyBlock / 2 * lanes : 0);
  }
};

// The sums of one block over its keys, per query.
template <class T, int kVectors>
struct BlockSums {
  Vec<T> normalizer[kVectors] = {}, balance[kVectors] = {}, tangent_normalizer[kVectors] = {},
         tangent_balance[kVectors] = {};
};

// Scores to weights a c 2^-reference, their tangents to those of u, in place; the sums.
template <class T, bool kTwoSided, int kVectors>
static __attribute__((noinline)) void exponentiate_tangents(bool odd_kind, int64_t rows, T factor, const T* weights,
                                                            const T* bias_tangents, const Vec<T>* reference, T* scores,
                                                            T* tangents, BlockSums<T, kVectors>& to) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  BlockSums<T, kVectors> sums;
  Vec<T> shift[kVectors];
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) shift[j] = reference[j];
  for (int64_t r = 0; r < rows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t at = r * lanes + j * kLanes<T>;
      const Vec<T> st = load(tangents + at) * factor;
      const Vec<T> bt = bias_tangents ? load(bias_tangents + at) : Vec<T>{};
      if constexpr (!kTwoSided) {
        const Vec<T> a = exp2_vector<T>(load(scores + at) - shift[j]), ud = a * (st + bt);
        sums.normalizer[j] += a, sums.tangent_normalizer[j] += ud;
        store<T>(scores + at, a), store<T>(tangents + at, ud);
      } else {
        Vec<T> even, odd;
        if (weights) {
          const Weight<T> weight = split_weight<T>(load(weights + at) - shift[j]);
          two_sided<T>(load(scores + at), weight.exponent, even, odd);
          even *= weight.factor, odd *= weight.factor;
        } else {
          two_sided<T>(load(scores + at), -shift[j], even, odd);
        }
        const Vec<T> even_moves = odd * st + even * bt, odd_moves = even * st + odd * bt;
        sums.normalizer[j] += even, sums.balance[j] += odd;
        sums.tangent_normalizer[j] += even_moves, sums.tangent_balance[j] += odd_moves;
        store<T>(scores + at, odd_kind ? odd : even), store<T>(tangents + at, odd_kind ? odd_moves : even_moves);
      }
    }
  to = sums;
}

template <class E, bool kTwoSided, int kVectors>
static void forward_jvp_block(const AttentionParameters& p, const Problem& problem, Block block, const BlockRows<E>& in,
                              ForwardPanel<E>& panel, TangentPanel<E>& tangent, ForwardJvpScratch<E>& s) {
  using T = Sum<E>;
  constexpr int64_t lanes = kVectors * kLanes<T>;
  const Rows<E> none{nullptr, 0};
  Vec<T> reference[kVectors], correction[kVectors];
  const bool has_weights = weighted(p, block.query, block.key + block.rows - 1);
  refer<E, kTwoSided, kVectors>(p, problem, block, has_weights, in.key, panel.query, panel.reference, s.scores,
                                s.weights, reference, correction);
  product_sum<E, kVectors>(block.rows, depth_of<E>(p.head_size), tangent.query ? in.key : none, tangent.query,
                           in.tangent_key, panel.query, s.score_tangents);
  if (p.tangent_bias) fill_elements<T, Lanes::queries>(problem.tangent_bias, block, T(1), s.bias_tangents, lanes);
  BlockSums<T, kVectors> sums;
  exponentiate_tangents<T, kTwoSided, kVectors>(
      p.kind == Kind::sinh, block.rows, tangent_scale<E>(p), has_weights ? s.weights : nullptr,
      p.tangent_bias ? s.bias_tangents : nullptr, reference, s.scores, s.score_tangents, sums);
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    const auto add = [&](T* all, Vec<T> more) {
      store<T>(all + j * kLanes<T>, load(all + j * kLanes<T>) * correction[j] + more);
    };
    add(panel.normalizer, sums.normalizer[j]), add(panel.balance, sums.balance[j]);
    add(tangent.normalizer, sums.tangent_normalizer[j]), add(tangent.balance, sums.tangent_balance[j]);
  }
  if (p.dropout_p > 0) {
    fill_dropout<T, Lanes::queries>(p, problem.seed, block, s.weights, lanes);
    for (T* x : {s.scores, s.score_tangents}) multiply_by<T>(s.weights, block.rows * lanes, x);
  }
  const E* const weights = weight_factors<E, kVectors>(block.rows, s.scores, s.pairs);
  accumulate_values<E, kVectors>(block.rows, p.value_size, in.value, weights, none, nullptr, correction, panel.output);
  const bool scores_move = p.tangent_query || p.tangent_key || p.tangent_bias;
  accumulate_values<E, kVectors>(block.rows, p.value_size, scores_move ? in.value : none,
                                 weight_factors<E, kVectors>(block.rows, s.score_tangents, s.tangent_pairs),
                                 in.tangent_value, weights, correction, tangent.output);
}

template <class E>
static void start_tangents(const AttentionParameters& p, const Problem& problem, int64_t first, int64_t count,
                           TangentPanel<E>& tangent) {
  using T = Sum<E>;
  const int64_t lanes = panel_lanes<E>(count);
  if (tangent.query)
    pack_panel<E>(from_row(problem.tangent_query, first), count, p.head_size, packed_scale<E>(p), tangent.query, lanes);
  std::memset(tangent.output, 0, sizeof(T) * round_up(p.value_size, kTileRows) * lanes);
  for (T* sum : {tangent.normalizer, tangent.balance}) std::memset(sum, 0, sizeof(T) * lanes);
}

// Before the panel itself is finished, whose sums are of c = its normalizer:
//   dl = sum dc / c,  dW = (sum ud v + a dv - dl sum a v) / c,  drho = (sum ud - dl sum u) / c
template <class E>
static void finish_tangents(const AttentionParameters& p, int64_t b, int64_t first, int64_t count,
                            const ForwardPanel<E>& panel, const TangentPanel<E>& tangent) {
  using T = Sum<E>;
  const int64_t lanes = panel_lanes<E>(count);
  const OutputView output = matrix(p.tangent_output, p, b), balance = matrix(p.tangent_balance, p, b),
                   log_normalizer = matrix(p.tangent_log_normalizer, p, b);
  for (int64_t x = 0; x < lanes; x += kLanes<T>) {
    const Vec<T> inverse = inverse_normalizer<E>(panel, x), ld = load(tangent.normalizer + x) * inverse;
    for (int64_t at = x; at < p.value_size * lanes; at += lanes)
      store<T>(tangent.output + at, inverse * (load(tangent.output + at) - ld * load(panel.output + at)));
    store<T>(tangent.balance + x, inverse * (load(tangent.balance + x) - ld * load(panel.balance + x)));
    store<T>(tangent.normalizer + x, ld);
  }
  unpack_panel<E>(row_of(output, first), count, p.value_size, T(1), tangent.output, lanes);
  for (int64_t i = 0; i < count; ++i) {
    static_cast<T*>(log_normalizer.data)[(first + i) * log_normalizer.row] = tangent.normalizer[i];
    static_cast<T*>(balance.data)[(first + i) * balance.row] = p.kind == Kind::sinh ? tangent.balance[i] : T(0);
  }
}

struct ForwardJvp {
  template <class E>
  using Scratch = ForwardJvpScratch<E>;
  template <class E, bool kTwoSided>
  static void task(const AttentionParameters& p, int64_t task, Scratch<E>& s) {
    if (p.bias || p.mask || p.tangent_bias) clear_blocks<Sum<E>>({s.weights, s.bias_tangents});
    walk_panels<E>(
        p, task, s,
        [&](const Problem& problem, int64_t, int i, int64_t first, int64_t count) {
          start_panel<E>(p, problem, first, count, s.panels[i]);
          start_tangents<E>(p, problem, first, count, s.tangents[i]);
        },
        [&](const Problem& problem, const BlockRows<E>& in, int i, Block block, auto vectors) {
          forward_jvp_block<E, kTwoSided, decltype(vectors)::value>(p, problem, block, in, s.panels[i], s.tangents[i],
                                                                    s);
        },
        [&](int64_t b, int i, int64_t first, int64_t count) {
          finish_tangents<E>(p, b, first, count, s.panels[i], s.tangents[i]);
          finish_panel<E>(p, b, first, count, s.panels[i]);
        });
  }
};

}  // namespace

AttentionProgram attention_forward_jvp(const AttentionParameters& p) { return panel_program<ForwardJvp>(p); }

}  // namespace rescaled::RESCALED_ISA
