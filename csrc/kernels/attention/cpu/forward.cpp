// SPDX-License-Identifier: BSD-3-Clause
// Forward: W = a V, balance, log_normalizer. Lanes are queries: S^T = K Q^T with rows of K broadcast in their natural
// layout and Q packed, weights per lane with an online reference, W^T += V^T a^T. No horizontal maximum or sum, no pack
// of K or V.
#include <cmath>

#include "panel.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
struct ForwardPanel {
  T *query, *output;                    // [D][lanes], [Dv][lanes]
  T *reference, *normalizer, *balance;  // [lanes]; all sums are relative to 2^reference
};

template <class T>
struct ForwardScratch : PanelScratch<T> {
  ForwardPanel<T> panels[kPanelsPerTask];
  T *scores, *weights;  // [kKeyBlock][lanes]
  ForwardScratch(const AttentionParameters& p, Arena& arena) : PanelScratch<T>(p, arena) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    for (int i = 0; i < panels_per_task<T>(p); ++i)
      panels[i] = {arena.take<T>(p.head_size * lanes), arena.take<T>(round_up(p.value_size, kTileRows) * lanes),
                   arena.take<T>(lanes), arena.take<T>(lanes), arena.take<T>(lanes)};
    scores = arena.take<T>(kKeyBlock * lanes);
    weights = arena.take<T>(kKeyBlock * lanes);
  }
};

// The scores of a block, and their maximum (two-sided: of their absolute value) into `top`.
template <class T, bool kTwoSided, int kVectors>
static __attribute__((noinline)) void score_block(int64_t rows, int64_t depth, Rows<T> key, const T* query, T* scores,
                                                  Vec<T>* top) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  for (int64_t i = 0; i < rows; i += kTileRows) {
    Tile<T, kTileRows, kVectors> c;
    tile_clear<T, kTileRows, kVectors>(c);
    multiply<T, kTileRows, kVectors, false>(depth, key.data + i * key.ld, key.ld, query, lanes, c);
    tile_store<T, kTileRows, kVectors>(c, scores + i * lanes, lanes);
    if (i + kTileRows <= rows) {
      RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
        Vec<T> m = top[j];
        RESCALED_UNROLL for (int r = 0; r < kTileRows; ++r) m = maximum(m, kTwoSided ? absolute(c[r][j]) : c[r][j]);
        top[j] = m;
      }
    } else {  // rows beyond the last key must not raise the maximum
      for (int64_t r = i; r < rows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
          const Vec<T> s = load(scores + r * lanes + j * kLanes<T>);
          top[j] = maximum(top[j], kTwoSided ? absolute(s) : s);
        }
    }
  }
}

// Adds the log weights (two-sided: keeps them apart, they do not belong inside cosh) and takes the maximum anew.
template <class T, bool kTwoSided, int kVectors>
static __attribute__((noinline)) void weigh_block(int64_t rows, const T* weights, T* scores, Vec<T>* top) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  for (int64_t r = 0; r < rows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t at = r * lanes + j * kLanes<T>;
      const Vec<T> s = load(scores + at), w = load(weights + at);
      if (!kTwoSided) store<T>(scores + at, s + w);
      top[j] = maximum(top[j], kTwoSided ? absolute(s) + w : s + w);
    }
}

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

// W^T = W^T correction + V^T a^T. The block's sum starts from zero: 3-5x less error than one running sum.
template <class T, int kVectors>
static __attribute__((noinline)) void accumulate_output(int64_t rows, int64_t value_size, Rows<T> value,
                                                        const T* scores, const Vec<T>* correction, T* output) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  for (int64_t d = 0; d < value_size; d += kTileRows) {
    Tile<T, kTileRows, kVectors> c;
    tile_clear<T, kTileRows, kVectors>(c);
    multiply<T, kTileRows, kVectors, true>(rows, value.data + d, value.ld, scores, lanes, c);
    RESCALED_UNROLL for (int i = 0; i < kTileRows; ++i) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      T* o = output + (d + i) * lanes + j * kLanes<T>;
      store<T>(o, load(o) * correction[j] + c[i][j]);
    }
  }
}

template <class T, bool kTwoSided, int kVectors>
static void forward_block(const AttentionParameters& p, const Problem& problem, Block block, Rows<T> key, Rows<T> value,
                          ForwardPanel<T>& panel, T* scores, T* weights) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  const T infinity = static_cast<T>(__builtin_inf());
  Vec<T> reference[kVectors], top[kVectors], correction[kVectors], normalizer[kVectors], balance[kVectors];
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) reference[j] = top[j] = load(panel.reference + j * kLanes<T>);
  const bool has_weights = weighted(p, block.query, block.key + block.rows - 1);
  if (has_weights) {
    Vec<T> unused[kVectors] = {};
    score_block<T, kTwoSided, kVectors>(block.rows, p.head_size, key, panel.query, scores, unused);
    fill_log_weights<T, Lanes::queries>(p, problem.bias, problem.mask, block, weights, lanes);
    weigh_block<T, kTwoSided, kVectors>(block.rows, weights, scores, top);
  } else {
    score_block<T, kTwoSided, kVectors>(block.rows, p.head_size, key, panel.query, scores, top);
  }
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    if (kTwoSided) top[j] = round_to_integer<T>(top[j] + T(0.5));  // integral: 2^t and 2^-t are scaled exactly
    const Vec<T> finite =
        top[j] == -infinity ? Vec<T>{} : top[j];  // nothing attended yet: every weight is 0 against any reference
    correction[j] = exp2_vector<T>(reference[j] - finite);
    store<T>(panel.reference + j * kLanes<T>, top[j]);
    reference[j] = finite;
  }
  exponentiate_block<T, kTwoSided, kVectors>(p.kind == Kind::sinh, block.rows, has_weights ? weights : nullptr,
                                             reference, scores, normalizer, balance);
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    T *n = panel.normalizer + j * kLanes<T>, *b = panel.balance + j * kLanes<T>;
    store<T>(n, load(n) * correction[j] + normalizer[j]);
    if (kTwoSided) store<T>(b, load(b) * correction[j] + balance[j]);
  }
  if (p.dropout_p > 0) {
    fill_dropout<T, Lanes::queries>(p, problem.seed, block, weights, lanes);
    for (int64_t i = 0; i < block.rows * lanes; i += kLanes<T>)
      store<T>(scores + i, load(scores + i) * load(weights + i));
  }
  accumulate_output<T, kVectors>(block.rows, p.value_size, value, scores, correction, panel.output);
}

template <class T>
static void forward_finish(const AttentionParameters& p, int64_t b, int64_t first, int64_t count, int64_t lanes,
                           const ForwardPanel<T>& panel) {
  const OutputView output = matrix(p.output, p, b), balance = matrix(p.balance, p, b),
                   log_normalizer = matrix(p.log_normalizer, p, b);
  for (int64_t i = 0; i < count; ++i) {
    const T n = panel.normalizer[i], inverse = n == T(0) ? T(0) : T(1) / n;  // 0: a row without keys
    with_type(output.dtype, output.data, [&](auto* to) {
      for (int64_t d = 0; d < p.value_size; ++d)
        assign(to[(first + i) * output.row + d * output.column], panel.output[d * lanes + i] * inverse);
    });
    const T one = n == T(0) ? T(0) : T(1) + (n - n);  // NaN where the normalizer is not finite
    static_cast<T*>(balance.data)[(first + i) * balance.row] = p.kind == Kind::sinh ? panel.balance[i] * inverse : one;
    static_cast<T*>(log_normalizer.data)[(first + i) * log_normalizer.row] =
        static_cast<T>(n == T(0) ? -__builtin_inf() : double{panel.reference[i]} * kLn2 + std::log(double{n}));
  }
}

template <class T, bool kTwoSided>
static void forward_task(const AttentionParameters& p, int64_t task, ForwardScratch<T>& scratch) {
  const PanelTask t = panel_task<T>(p, task);
  const Problem problem(p, t.batch);
  for (int i = 0; i < t.panels; ++i) {
    const int64_t first = t.first + i * t.lanes, count = panel_count<T>(p, first), lanes = panel_lanes<T>(count);
    ForwardPanel<T>& panel = scratch.panels[i];
    pack_transposed<T>(from_row(problem.query, first), count, p.head_size, static_cast<T>(p.scale * kLog2e),
                       panel.query, lanes);
    std::memset(panel.output, 0, sizeof(T) * round_up(p.value_size, kTileRows) * lanes);
    for (int64_t x = 0; x < lanes; ++x)
      panel.reference[x] = -static_cast<T>(__builtin_inf()), panel.normalizer[x] = panel.balance[x] = 0;
  }
  const int64_t last = t.first + t.panels * t.lanes, keys = p.causal && last < p.keys ? last : p.keys;
  if (p.bias || p.mask)
    std::memset(scratch.weights, 0, sizeof(T) * kKeyBlock * t.lanes);  // lanes beyond the last query
  for (int64_t j = 0; j < keys; j += kKeyBlock) {
    const int64_t rows = keys - j < kKeyBlock ? keys - j : kKeyBlock;
    const Rows<T> key = key_rows(p, problem.key, j, rows, scratch.keys),
                  value = value_rows(p, problem.value, j, rows, scratch.values);
    for (int i = 0; i < t.panels; ++i) {
      const int64_t first = t.first + i * t.lanes, count = panel_count<T>(p, first);
      const int64_t seen = p.causal && first + count - j < rows ? first + count - j : rows;
      if (seen <= 0) continue;
      const Block block{first, j, seen, count};
      with_vectors<T>(count, [&](auto vectors) {
        forward_block<T, kTwoSided, decltype(vectors)::value>(p, problem, block, key, value, scratch.panels[i],
                                                              scratch.scores, scratch.weights);
      });
    }
  }
  for (int i = 0; i < t.panels; ++i) {
    const int64_t first = t.first + i * t.lanes, count = panel_count<T>(p, first);
    forward_finish<T>(p, t.batch, first, count, panel_lanes<T>(count), scratch.panels[i]);
  }
}

template <class T>
static void forward_run(const AttentionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  ForwardScratch<T> scratch(p, arena);
  for (int64_t task = begin; task < end; ++task) {
    if (p.kind == Kind::exp)
      forward_task<T, false>(p, task, scratch);
    else
      forward_task<T, true>(p, task, scratch);
  }
}

template <class T>
static AttentionProgram forward_program(const AttentionParameters& p) {
  return {{{panel_tasks<T>(p), bytes_of<ForwardScratch<T>>(p), forward_run<T>}}, 1, 0};
}

}  // namespace

AttentionProgram attention_forward(const AttentionParameters& p) {
  return p.query.dtype == DType::float64 ? forward_program<double>(p) : forward_program<float>(p);
}

}  // namespace rescaled::RESCALED_ISA
