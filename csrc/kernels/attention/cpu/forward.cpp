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

// Scores to weights a c 2^-reference in place; their sums relative to 2^-reference.
template <class T, bool kTwoSided, int kVectors>
static __attribute__((noinline)) void exponentiate_block(bool odd_kind, int64_t rows, const T* weights,
                                                         const Vec<T>* reference, T* scores, Vec<T>* normalizer,
                                                         Vec<T>* balance) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  Vec<T> shift[kVectors], sum[kVectors] = {},
                          odd_sum[kVectors] = {};  // in registers: the stores below may alias anything
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) shift[j] = reference[j];
  for (int64_t r = 0; r < rows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t at = r * lanes + j * kLanes<T>;
      if constexpr (!kTwoSided) {
        const Vec<T> a = exp2_vector<T>(load(scores + at) - shift[j]);
        sum[j] += a;
        store<T>(scores + at, a);
      } else {
        Vec<T> even, odd;
        if (weights) {
          const Weight<T> weight = split_weight<T>(load(weights + at) - shift[j]);
          two_sided<T>(load(scores + at), weight.exponent, even, odd);
          even *= weight.factor, odd *= weight.factor;
        } else {
          two_sided<T>(load(scores + at), -shift[j], even, odd);
        }
        sum[j] += even;
        odd_sum[j] += odd;
        store<T>(scores + at, odd_kind ? odd : even);
      }
    }
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) normalizer[j] = sum[j], balance[j] = odd_sum[j];
}

template <class T, bool kTwoSided, int kVectors>
static void forward_block(const AttentionParameters& p, const Problem& problem, Block block, const BlockRows<T>& in,
                          ForwardPanel<T>& panel, T* scores, T* weights) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  Vec<T> reference[kVectors], correction[kVectors], normalizer[kVectors], balance[kVectors];
  const bool has_weights = weighted(p, block.query, block.key + block.rows - 1);
  refer<T, kTwoSided, kVectors>(p, problem, block, has_weights, in.key, panel.query, panel.reference, scores, weights,
                                reference, correction);
  exponentiate_block<T, kTwoSided, kVectors>(p.kind == Kind::sinh, block.rows, has_weights ? weights : nullptr,
                                             reference, scores, normalizer, balance);
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    T *n = panel.normalizer + j * kLanes<T>, *b = panel.balance + j * kLanes<T>;
    store<T>(n, load(n) * correction[j] + normalizer[j]);
    if (kTwoSided) store<T>(b, load(b) * correction[j] + balance[j]);
  }
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
