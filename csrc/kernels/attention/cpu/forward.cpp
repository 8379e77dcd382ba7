// SPDX-License-Identifier: BSD-3-Clause
// Forward: W = a V, balance, log_normalizer. Lanes are queries: S^T = K Q^T with rows of K broadcast in their natural
// layout and Q packed, weights per lane with an online reference, W^T += V^T a^T. No horizontal maximum or sum, no pack
// of K or V.
#if !defined(__AVX512BF16__)  // few queries wait for memory alone: those of bfloat16 are converted
#include "forward_few.h"
#endif
#include "online.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class E>
struct ForwardScratch : PanelScratch<E> {
  using T = Sum<E>;
  ForwardPanel<E> panels[kPanelsPerTask];
  T *scores, *weights;  // [kKeyBlock][lanes]
  E* pairs;
  ForwardScratch(const AttentionParameters& p, Arena& arena) : PanelScratch<E>(p, arena) {
    for (ForwardPanel<E>& panel : panels) panel = take_panel<E>(p, arena);
    scores = arena.take<T>(kKeyBlock * kPanel<E>);
    weights = arena.take<T>(kKeyBlock * kPanel<E>);
    pairs = arena.take<E>(kPairs<E> ? kKeyBlock / 2 * kPanel<E> : 0);
  }
};

template <class E, bool kTwoSided, int kVectors>
static void forward_block(const AttentionParameters& p, const Problem& problem, Block block, const BlockRows<E>& in,
                          ForwardPanel<E>& panel, const ForwardScratch<E>& s) {
  using T = Sum<E>;
  constexpr int64_t lanes = kVectors * kLanes<T>;
  T *const scores = s.scores, *const weights = s.weights;
  Vec<T> correction[kVectors];
  const bool as_pairs = kPairs<E> && p.dropout_p == 0;
  weigh_online<E, kTwoSided, kVectors>(p, problem, block, in.key, panel, scores, weights, correction,
                                       as_pairs ? s.pairs : nullptr);
  if (p.dropout_p > 0) {
    fill_dropout<T, Lanes::queries>(p, problem.seed, block, weights, lanes);
    multiply_by<T>(weights, block.rows * lanes, scores);
  }
  accumulate_values<E, kVectors>(block.rows, p.value_size, in.value,
                                 as_pairs ? s.pairs : weight_factors<E, kVectors>(block.rows, scores, s.pairs),
                                 {nullptr, 0}, nullptr, correction, panel.output);
}

struct Forward {
  template <class E>
  using Scratch = ForwardScratch<E>;
  template <class E, bool kTwoSided>
  static void task(const AttentionParameters& p, int64_t task, Scratch<E>& s) {
    if (p.bias || p.mask) clear_blocks<Sum<E>>({s.weights});
    walk_panels<E>(
        p, task, s,
        [&](const Problem& problem, int64_t, int i, int64_t first, int64_t count) {
          start_panel<E>(p, problem, first, count, s.panels[i]);
        },
        [&](const Problem& problem, const BlockRows<E>& in, int i, Block block, auto vectors) {
          forward_block<E, kTwoSided, decltype(vectors)::value>(p, problem, block, in, s.panels[i], s);
        },
        [&](int64_t b, int i, int64_t first, int64_t count) { finish_panel<E>(p, b, first, count, s.panels[i]); });
  }
};

}  // namespace

AttentionProgram attention_forward(const AttentionParameters& p) {
#if !defined(__AVX512BF16__)
  if (few_queries(p)) return p.query.dtype == DType::float64 ? few_program<double>(p) : few_program<float>(p);
#endif
  return panel_program<Forward>(p);
}

}  // namespace rescaled::RESCALED_ISA
