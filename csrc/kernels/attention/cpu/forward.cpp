// SPDX-License-Identifier: BSD-3-Clause
// Forward: W = a V, balance, log_normalizer. Lanes are queries: S^T = K Q^T with rows of K broadcast in their natural
// layout and Q packed, weights per lane with an online reference, W^T += V^T a^T. No horizontal maximum or sum, no pack
// of K or V.
#include "forward_few.h"
#include "online.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
struct ForwardScratch : PanelScratch<T> {
  ForwardPanel<T> panels[kPanelsPerTask];
  T *scores, *weights;  // [kKeyBlock][lanes]
  ForwardScratch(const AttentionParameters& p, Arena& arena) : PanelScratch<T>(p, arena) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    for (ForwardPanel<T>& panel : panels) panel = take_panel<T>(p, arena);
    scores = arena.take<T>(kKeyBlock * lanes);
    weights = arena.take<T>(kKeyBlock * lanes);
  }
};

template <class T, bool kTwoSided, int kVectors>
static void forward_block(const AttentionParameters& p, const Problem& problem, Block block, const BlockRows<T>& in,
                          ForwardPanel<T>& panel, T* scores, T* weights) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  Vec<T> correction[kVectors];
  weigh_online<T, kTwoSided, kVectors>(p, problem, block, in.key, panel, scores, weights, correction);
  if (p.dropout_p > 0) {
    fill_dropout<T, Lanes::queries>(p, problem.seed, block, weights, lanes);
    multiply_by<T>(weights, block.rows * lanes, scores);
  }
  accumulate_values<T, kVectors>(block.rows, p.value_size, in.value, scores, {nullptr, 0}, nullptr, correction,
                                 panel.output);
}

struct Forward {
  template <class T>
  using Scratch = ForwardScratch<T>;
  template <class T, bool kTwoSided>
  static void task(const AttentionParameters& p, int64_t task, Scratch<T>& s) {
    if (p.bias || p.mask) clear_blocks<T>({s.weights});
    walk_panels<T>(
        p, task, s,
        [&](const Problem& problem, int64_t, int i, int64_t first, int64_t count) {
          start_panel<T>(p, problem, first, count, s.panels[i]);
        },
        [&](const Problem& problem, const BlockRows<T>& in, int i, Block block, auto vectors) {
          forward_block<T, kTwoSided, decltype(vectors)::value>(p, problem, block, in, s.panels[i], s.scores,
                                                                s.weights);
        },
        [&](int64_t b, int i, int64_t first, int64_t count) { finish_panel<T>(p, b, first, count, s.panels[i]); });
  }
};

}  // namespace

AttentionProgram attention_forward(const AttentionParameters& p) {
  if (few_queries(p)) return p.query.dtype == DType::float64 ? few_program<double>(p) : few_program<float>(p);
  return panel_program<Forward>(p);
}

}  // namespace rescaled::RESCALED_ISA
