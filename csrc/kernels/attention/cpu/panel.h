// SPDX-License-Identifier: BSD-3-Clause
// The loop that forward and JVP share: a task is a few panels of queries (the lanes) that walk the keys in blocks.
#pragma once
#include "../../cpu/arena.h"
#include "block.h"

namespace rescaled::RESCALED_ISA {
namespace {

// A block of scores, 12 KB in float, shares the first-level cache with the query panel: 64 keys are 10 % faster than
// 256 on a 48 KB cache (Sapphire Rapids, measured), and no slower elsewhere. Tiles are fast: what happens once a block
// has to be rare (512 keys are 5 % faster than 256, 1024 no faster where the mask is causal). Dots take half the steps
// of float: 256 keys are 6-10 % faster than 64, 512 1 % more and slower where the mask is causal (Zen 4, measured).
#if defined(__AMX_BF16__)
constexpr int64_t kKeyBlock = 512;
constexpr int kPanelsPerTask = 8;
#elif defined(__AVX512BF16__)
constexpr int64_t kKeyBlock = 256;
constexpr int kPanelsPerTask = 4;
#else
constexpr int64_t kKeyBlock = 64;
constexpr int kPanelsPerTask = 4;
#endif

// The panels of a task share what is read of keys and values: measured with AVX2, four panels a task are 3-6 % faster
// than one where heads lie next to each other in memory, 10-15 % where they are interleaved, and eight no faster. Where
// tiles want them packed, eight are 5 % faster than four.
template <class E>
RESCALED_INLINE bool packs(const AttentionParameters& p) {
  if (kPairs<E>) return true;
  using T = Sum<E>;
  const auto direct = [](const Input& m, int64_t columns, int64_t whole_columns) {
    return !m || in_place<T>(InputView{m.data, m.dtype, m.row, m.column}, kKeyBlock, columns, kTileRows, whole_columns);
  };
  return !(direct(p.key, p.head_size, 1) && direct(p.value, p.value_size, kTileRows) &&
           direct(p.tangent_key, p.head_size, 1) && direct(p.tangent_value, p.value_size, kTileRows));
}

// Length of a row of packed keys, and of packed values: columns, but (tiles) pairs of keys, transposed.
template <class E>
RESCALED_INLINE int64_t key_ld(const AttentionParameters& p) {
  return kPairs<E> ? packed_ld<E>(depth_of<E>(p.head_size)) : p.head_size;
}
template <class E>
RESCALED_INLINE int64_t value_ld(const AttentionParameters& p) {
  if (kByTiles<E>) return kKeyBlock / 2 + 16;  // an odd number of cache lines, as of packed_ld
  return kPairs<E> ? packed_ld<E>(round_up(p.value_size, kPairColumns)) : round_up(p.value_size, kTileRows);
}

// Lanes of a panel of `count` queries, in whole vectors.
template <class E>
RESCALED_INLINE int64_t panel_lanes(int64_t count) {
  return round_up(count, kLanes<Sum<E>>);
}
template <class T, class Function>
RESCALED_INLINE void with_vectors(int64_t count, Function f) {
  if (kTileVectors > 3 && count > 3 * kLanes<T>)
    f(Constant<kTileVectors>());
  else if (count > 2 * kLanes<T>)
    f(Constant<3>());
  else if (count > kLanes<T>)
    f(Constant<2>());
  else
    f(Constant<1>());
}

// How the panels of one matrix of queries are cut into tasks, by shape alone: `single` tasks of one panel, the first
// queries, then `groups` of up to `each`. The groups run first and the singles fill the threads that are done early. A
// single reads all keys for itself (with one thread 2 % of the forward where each fourth panel was one), so that all
// matrices together have about eight; where there are many matrices their number fills the threads, and where keys are
// packed singles would pack them anew. Pairs always are: their groups are smaller where there would be too few.
struct PanelCut {
  int64_t singles, groups, each = kPanelsPerTask;
};
template <class E>
RESCALED_INLINE PanelCut panel_cut(const AttentionParameters& p) {
  constexpr int64_t all_singles = 2 * kPanelsPerTask, many = 8;
  const int64_t panels = panels_of<E>(p.queries), matrices = p.kv_batches * p.group;
  if (kPairs<E>) {
    const int64_t all = matrices * panels, small = kPanelsPerTask < 4 ? kPanelsPerTask : 4,
                  each = all >= 16 * kPanelsPerTask ? kPanelsPerTask
                         : all >= 4 * small         ? small
                         : all >= 8                 ? all / 4
                                                    : 1;
    return {0, (panels + each - 1) / each, each};
  }
  if (packs<E>(p) || matrices >= many) return {0, (panels + kPanelsPerTask - 1) / kPanelsPerTask};
  const int64_t singles = all_singles / (matrices > 1 ? matrices : 1);
  if (panels <= singles) return {panels, 0};
  const int64_t groups = (panels - singles) / kPanelsPerTask;
  return {panels - groups * kPanelsPerTask, groups};
}

struct PanelTask {
  int64_t batch, panel;  // its first one
  int panels;
};
template <class E>
RESCALED_INLINE int64_t panel_tasks(const AttentionParameters& p) {
  const PanelCut cut = panel_cut<E>(p);
  return p.kv_batches * p.group * (cut.singles + cut.groups);
}
template <class E>
RESCALED_INLINE PanelTask panel_task(const AttentionParameters& p, int64_t task) {
  const PanelCut cut = panel_cut<E>(p);
  const int64_t tasks = cut.singles + cut.groups, index = tasks - 1 - task % tasks;  // the longest first
  const bool single = index < cut.singles;
  const int64_t panel = single ? index : cut.singles + (index - cut.singles) * cut.each,
                left = panels_of<E>(p.queries) - panel;
  return {task / tasks, panel, single ? 1 : static_cast<int>(left < cut.each ? left : cut.each)};
}

// Where keys and values are packed when they cannot be read in place. Pairs of values always are: their products sum
// over keys, so that pairs of keys have to be neighbors.
template <class E>
struct PanelScratch {
  E *keys, *values, *tangent_keys, *tangent_values;
  PanelScratch(const AttentionParameters& p, Arena& arena) {
    const int64_t rows = kByTiles<E> ? round_up(p.value_size, kPairColumns)
                         : kPairs<E> ? kKeyBlock / 2
                                     : kKeyBlock,
                  head = kKeyBlock * key_ld<E>(p), columns = rows * value_ld<E>(p);
    keys = arena.take<E>(head), values = arena.take<E>(columns);
    tangent_keys = arena.take<E>(p.tangent_key ? head : 0),
    tangent_values = arena.take<E>(p.tangent_value ? columns : 0);
  }
};
// The rows of a block that products read; absent: data = nullptr.
template <class E>
struct BlockRows {
  Rows<E> key, value, tangent_key, tangent_value;  // pairs: values in pairs of keys; for tiles transposed, [Dv][keys]
};
template <class T>
static BlockRows<T> block_rows(const AttentionParameters& p, const Problem& problem, int64_t first, int64_t rows,
                               const PanelScratch<T>& s) {
  const auto keys = [&](InputView m, T* to) {
    return m ? rows_of<T>(from_row(m, first), rows, p.head_size, kTileRows, 1, to) : Rows<T>{nullptr, 0};
  };
  const auto values = [&](InputView m, T* to) {
    return m ? rows_of<T>(from_row(m, first), rows, p.value_size, 1, kTileRows, to) : Rows<T>{nullptr, 0};
  };
  return {keys(problem.key, s.keys), values(problem.value, s.values), keys(problem.tangent_key, s.tangent_keys),
          values(problem.tangent_value, s.tangent_values)};
}

#if defined(__AVX512BF16__)
template <>
BlockRows<Pair> block_rows<Pair>(const AttentionParameters& p, const Problem& problem, int64_t first, int64_t rows,
                                 const PanelScratch<Pair>& s) {
  const auto keys = [&](InputView m, Pair* to) {
    const int64_t ld = key_ld<Pair>(p);
    if (m && m.column == 1 && m.row % 2 == 0 && p.head_size % kPairColumns == 0 && rows % kTileRows == 0)
      return Rows<Pair>{static_cast<const Pair*>(from_row(m, first).data), m.row / 2};
    if (m)
      pack_pairs<false>(from_row(m, first), rows, p.head_size, round_up(rows, kTileRows), depth_of<Pair>(p.head_size),
                        to, ld);
    return Rows<Pair>{m ? to : nullptr, ld};
  };
  const auto values = [&](InputView m, Pair* to) {
    constexpr auto pack = kByTiles<Pair> ? pack_pairs_transposed<true> : pack_pairs<true>;
    const int64_t ld = value_ld<Pair>(p);
    if (m)
      pack(from_row(m, first), rows, p.value_size, depth_of<Pair>(rows), round_up(p.value_size, kPairColumns), to, ld);
    return Rows<Pair>{m ? to : nullptr, ld};
  };
  return {keys(problem.key, s.keys), values(problem.value, s.values), keys(problem.tangent_key, s.tangent_keys),
          values(problem.tangent_value, s.tangent_values)};
}
#endif

// A task: start(problem, batch, panel, first, count) for its panels, visit(problem, rows, panel, block, Constant of
// vectors) for the blocks of keys and the panels that attend some of them, finish(batch, panel, first, count).
template <class E, class Start, class Visit, class Finish>
RESCALED_INLINE void walk_panels(const AttentionParameters& p, int64_t task, const PanelScratch<E>& scratch,
                                 Start start, Visit visit, Finish finish) {
  const PanelTask t = panel_task<E>(p, task);
  const Problem problem(p, t.batch);
  Span panels[kPanelsPerTask];
  for (int i = 0; i < t.panels; ++i) {
    panels[i] = panel_span<E>(p.queries, t.panel + i);
    start(problem, t.batch, i, panels[i].first, panels[i].count);
  }
  const int64_t last = panels[t.panels - 1].first + panels[t.panels - 1].count,
                keys = p.causal && last < p.keys ? last : p.keys;
  for (int64_t j = 0; j < keys; j += kKeyBlock) {
    const int64_t rows = keys - j < kKeyBlock ? keys - j : kKeyBlock;
    const BlockRows<E> in = block_rows<E>(p, problem, j, rows, scratch);
    for (int i = 0; i < t.panels; ++i) {
      const auto [first, count] = panels[i];
      const int64_t seen = p.causal && first + count - j < rows ? first + count - j : rows;
      if (seen <= 0) continue;
      const Block block{first, j, seen, count};
      with_vectors<Sum<E>>(count, [&](auto vectors) { visit(problem, in, i, block, vectors); });
    }
  }
  for (int i = 0; i < t.panels; ++i) finish(t.batch, i, panels[i].first, panels[i].count);
}

// A pass over the panels, in the type of the factors. A Pass has Scratch<E>, a PanelScratch<E>, and, static,
// task<E, kTwoSided>(p, task, scratch).
template <class Pass, class E>
static void panel_run(const AttentionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  typename Pass::template Scratch<E> scratch(p, arena);
  take_tiles();
  for (int64_t task = begin; task < end; ++task) {
    if (p.kind == Kind::exp)
      Pass::template task<E, false>(p, task, scratch);
    else
      Pass::template task<E, true>(p, task, scratch);
  }
  give_tiles_back();
}
template <class Pass>
static AttentionProgram panel_program(const AttentionParameters& p) {
  return with_factors(p, [&](auto factor) -> AttentionProgram {
    using E = typename decltype(factor)::Type;
    return {{{panel_tasks<E>(p), bytes_of<typename Pass::template Scratch<E>>(p), panel_run<Pass, E>}}, 1, 0};
  });
}

// Blocks that are filled for real queries alone, and read in whole vectors.
template <class T>
RESCALED_INLINE void clear_blocks(std::initializer_list<T*> blocks) {
  for (T* block : blocks) std::memset(block, 0, sizeof(T) * kKeyBlock * kTileVectors * kLanes<T>);
}

// x *= dropout's factors
template <class T>
RESCALED_INLINE void multiply_by(const T* factors, int64_t count, T* x) {
  for (int64_t i = 0; i < count; i += kLanes<T>) store<T>(x + i, load(x + i) * load(factors + i));
}

// A block of weights as factors of the products with values; pairs: of keys, in `pairs`.
template <class E, int kVectors>
RESCALED_INLINE const E* weight_factors([[maybe_unused]] int64_t rows, const Sum<E>* block, [[maybe_unused]] E* pairs) {
#if defined(__AVX512BF16__)
  pair_rows<kVectors>(rows, 2 * depth_of<E>(rows), block, pairs);
  return pairs;
#else
  return block;
#endif
}

// out^T = out^T correction + a^T x (+ b^T y), either product absent where its rows are; without a correction, 1.
// The block's sum starts from zero: 3-5x less error than one running sum.
template <class E, int kVectors, class T = Sum<E>>
static __attribute__((noinline)) void accumulate_values(int64_t rows, int64_t value_size, Rows<E> a, const E* x,
                                                        Rows<E> b, const E* y, const Vec<T>* correction, T* output) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  const int64_t steps = kPairs<E> ? (rows + 1) / 2 : rows;
  Vec<T> factor[kVectors];
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) factor[j] = correction ? correction[j] : broadcast(T(1));
  for (int64_t d = 0; d < value_size; d += kTileRows) {
    Tile<T, kTileRows, kVectors> c;
    tile_clear<T, kTileRows, kVectors>(c);
    if (a.data) multiply<E, kTileRows, kVectors, true>(steps, a.data + d, a.ld, x, lanes, c);
    if (b.data) multiply<E, kTileRows, kVectors, true>(steps, b.data + d, b.ld, y, lanes, c);
    RESCALED_UNROLL for (int i = 0; i < kTileRows; ++i) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      T* o = output + (d + i) * lanes + j * kLanes<T>;
      store<T>(o, load(o) * factor[j] + c[i][j]);
    }
  }
}

#if defined(__AMX_BF16__)
// The same by tiles. The sum runs on across blocks: weights rounded to bfloat16 leave an error far above its own.
template <class E, int kVectors>
static void accumulate_values(int64_t rows, int64_t value_size, Rows<Pair> a, const Pair* x, Rows<Pair> b,
                              const Pair* y, const FloatVector* correction, float* output) {
  constexpr int64_t lanes = kVectors * 16;
  const int64_t padded = round_up(value_size, kTileRows);
  bool changed = false;
  for (int j = 0; correction && j < kVectors; ++j)
    changed |= _mm512_cmp_ps_mask((__m512)correction[j], _mm512_set1_ps(1.f), _CMP_NEQ_UQ) != 0;
  if (changed)
    for (int64_t d = 0; d < padded; ++d) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
        float* const o = output + d * lanes + j * 16;
        store<float>(o, load(o) * correction[j]);
      }
  if (a.data) pair_product<kVectors>(padded, depth_of<Pair>(rows), true, a, x, lanes, output, lanes);
  if (b.data) pair_product<kVectors>(padded, depth_of<Pair>(rows), true, b, y, lanes, output, lanes);
}
#endif

}  // namespace
}  // namespace rescaled::RESCALED_ISA
