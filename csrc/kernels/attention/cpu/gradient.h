// SPDX-License-Identifier: BSD-3-Clause
// Backward and double backward: lanes are keys. A task owns a chunk of the keys of one key-value head: an outer loop
// over its key blocks, whose packed K^T, V^T, dK^T, dV^T stay in the second-level cache, an inner one over the query
// blocks of every head of the group. dQ is accumulated in one private copy per chunk; a last step sums the copies in a
// fixed order.
#pragma once
#include "gradient_tile.h"

namespace rescaled::RESCALED_ISA {
namespace {

// The blocks of one panel, 12 KB in float, stay in the first-level cache, the packed panels of keys in the second.
// Measured: with AVX-512 64 x 4 is 12-20 % faster than 128 x 2 on a 48 KB + 2 MB machine; with AVX2, panels half as
// wide, 128 x 4 is 0-6 % faster than 64 x 4 on a 32 KB + 512 KB machine, and 6 or 8 panels are no faster.
constexpr int64_t kQueryBlock = kVectorBytes == 64 ? 64 : 128;
constexpr int kKeyPanels = 4;
constexpr int64_t kKeysPerChunk = 256;
template <class T>
inline constexpr int64_t kMostKeysPerBlock = kKeyPanels * kPanel<T>;

RESCALED_INLINE int64_t padded_queries(const AttentionParameters& p) { return round_up(p.queries, kTileRows); }
template <class T>
RESCALED_INLINE int64_t query_ld(const AttentionParameters& p) {
  return round_up(p.head_size, kLanes<T>);
}
// Enough tasks for many threads where there are few heads, for a few threads also where there are few keys; by shape
// alone. A chunk costs a copy of dQ, written and read once: by count a tenth of the time of 96 keys, and a twentieth of
// that of 256.
RESCALED_INLINE int64_t wanted_chunks(const AttentionParameters& p) {
  const auto chunks = [&](int64_t tasks, int64_t keys) {
    const int64_t by_heads = tasks / (p.kv_batches > 0 ? p.kv_batches : 1), by_keys = p.keys / keys;
    return by_heads < by_keys ? by_heads : by_keys;
  };
  const int64_t many = chunks(16, kKeysPerChunk), few = chunks(4, kKeysPerChunk / (p.head_size < 128 ? 4 : 8)),
                most = many > few ? many : few;
  return most < 1 ? 1 : most;
}
// Keys of a block: up to kKeyPanels panels, fewer where a chunk has fewer.
template <class T>
RESCALED_INLINE int64_t keys_per_block(const AttentionParameters& p) {
  const int64_t chunks = wanted_chunks(p), panels = (p.keys + kPanel<T> - 1) / kPanel<T>,
                each = (panels + chunks - 1) / chunks;
  return (each < 1 ? 1 : each < kKeyPanels ? each : kKeyPanels) * kPanel<T>;
}
template <class T>
RESCALED_INLINE int64_t key_blocks(const AttentionParameters& p) {
  return (p.keys + keys_per_block<T>(p) - 1) / keys_per_block<T>(p);
}
template <class T>
RESCALED_INLINE int64_t key_chunks(const AttentionParameters& p) {
  const int64_t wanted = wanted_chunks(p), blocks = key_blocks<T>(p);
  return blocks < 1 ? 1 : wanted < blocks ? wanted : blocks;
}
// The first row of queries that key block `block` meets: those before it are masked where the mask is causal.
template <class T>
RESCALED_INLINE int64_t first_row(const AttentionParameters& p, int64_t block) {
  return p.causal ? block * keys_per_block<T>(p) / kTileRows * kTileRows : 0;
}

// Length in memory of a packed row: an odd number of cache lines. Products walk down the columns of these blocks, and
// at a power of two their lines would fall into few sets of the first-level cache (at head size 128 into 8 of 64; 3 %
// of the backward where heads lie next to each other, 15 % where they are interleaved).
template <class T>
RESCALED_INLINE int64_t packed_ld(int64_t columns) {
  constexpr int64_t line = 64 / sizeof(T);
  return ((columns + line - 1) / line | 1) * line;
}

template <class T>
struct GradientWorkspace {
  T *rows, *grad_query;  // [batches][kRowArrays][padded_queries], [batches][chunks][padded_queries][query_ld]
  // What every key block reads, packed once: [batches][padded_queries][head_ld, value_ld]. Query and its tangent times
  // scale log2(e).
  T *query, *tangent_query, *grad_output;  // absent: nullptr
  int64_t padded, head_ld, value_ld;
  GradientWorkspace(const AttentionParameters& p, Arena& arena)
      : padded(padded_queries(p)), head_ld(packed_ld<T>(p.head_size)), value_ld(packed_ld<T>(p.value_size)) {
    const int64_t all = batches(p) * padded;
    rows = arena.take<T>(all * kRowArrays);
    grad_query = arena.take<T>(p.grad_query ? all * key_chunks<T>(p) * query_ld<T>(p) : 0);
    query = arena.take<T>(all * head_ld), tangent_query = p.tangent_query ? arena.take<T>(all * head_ld) : nullptr;
    grad_output = p.grad_output ? arena.take<T>(all * value_ld) : nullptr;
  }
  RowData<T> row_data(int64_t b, int64_t row) const { return {rows + b * kRowArrays * padded + row, padded}; }
  T* grad_query_of(const AttentionParameters& p, int64_t b, int64_t chunk) const {
    return grad_query + (b * key_chunks<T>(p) + chunk) * padded * query_ld<T>(p);
  }
  T* row_of(T* m, int64_t b, int64_t row, int64_t ld) const { return m + (b * padded + row) * ld; }
};
template <class T>
RESCALED_INLINE GradientWorkspace<T> workspace(const AttentionParameters& p) {
  Arena arena(p.workspace);
  return GradientWorkspace<T>(p, arena);
}

// Packed panels of a key block, and the blocks of one query block against it.
template <class T>
struct GradientScratch {
  T *key, *value, *tangent_key, *tangent_value;                // [kKeyPanels][depth][kPanel]
  T *grad_key, *grad_value;                                    // [kKeyPanels][depth, padded to kTileRows][kPanel]
  T *key_rows, *tangent_key_rows;                              // [kMostKeysPerBlock][packed_ld]
  T *value_weights, *score_gradient, *tangent_score_gradient;  // [kKeyPanels][kQueryBlock][kPanel]
  T *weights, *bias_tangents, *dropout, *tangent_e;            // [kQueryBlock][kPanel]
  int64_t head_rows, value_rows;
  GradientScratch(const AttentionParameters& p, Arena& arena)
      : head_rows(round_up(p.head_size, kTileRows)), value_rows(round_up(p.value_size, kTileRows)) {
    const int64_t head = kMostKeysPerBlock<T> * head_rows, value_panels = kMostKeysPerBlock<T> * value_rows;
    key = arena.take<T>(head), grad_key = arena.take<T>(head);
    value = arena.take<T>(value_panels), grad_value = arena.take<T>(value_panels);
    tangent_key = arena.take<T>(p.tangent_key ? head : 0),
    tangent_value = arena.take<T>(p.tangent_value ? value_panels : 0);
    const int64_t rows = kMostKeysPerBlock<T> * packed_ld<T>(p.head_size);
    key_rows = arena.take<T>(rows), tangent_key_rows = arena.take<T>(p.tangent_key ? rows : 0);
    for (T** block : {&value_weights, &score_gradient, &tangent_score_gradient})
      *block = arena.take<T>(kKeyPanels * kQueryBlock * kPanel<T>);
    for (T** block : {&weights, &bias_tangents, &dropout, &tangent_e}) *block = arena.take<T>(kQueryBlock * kPanel<T>);
  }
};

// Packs panel `panel` of the keys that start at `first`: [depth][kPanel], lanes beyond the last key are 0.
template <class T>
static void pack_key_panel(const AttentionParameters& p, const Problem& g, int64_t first, int panel,
                           GradientScratch<T>& s) {
  const int64_t key = first + panel * kPanel<T>, left = p.keys - key, count = left < kPanel<T> ? left : kPanel<T>;
  const auto pack = [&](InputView m, int64_t depth, int64_t padded, T* to) {
    if (m) pack_transposed<T>(from_row(m, key), count, depth, T(1), to + panel * padded * kPanel<T>, kPanel<T>);
  };
  pack(g.key, p.head_size, s.head_rows, s.key), pack(g.value, p.value_size, s.value_rows, s.value);
  pack(g.tangent_key, p.head_size, s.head_rows, s.tangent_key),
      pack(g.tangent_value, p.value_size, s.value_rows, s.tangent_value);
}

// Packs rows [first, first + count) of one problem into the workspace.
template <class T>
static void pack_queries(const AttentionParameters& p, const Problem& g, const GradientWorkspace<T>& space, int64_t b,
                         int64_t first, int64_t count) {
  const T scale = static_cast<T>(p.scale * kLog2e);
  const int64_t rows = round_up(count, kTileRows);
  const auto pack = [&](InputView m, int64_t depth, T factor, T* to, int64_t ld) {
    pack_rows<T>(from_row(m, first), count, depth, factor, space.row_of(to, b, first, ld), rows, ld);
  };
  pack(g.query, p.head_size, scale, space.query, space.head_ld);
  if (g.tangent_query) pack(g.tangent_query, p.head_size, scale, space.tangent_query, space.head_ld);
  if (g.grad_output) pack(g.grad_output, p.value_size, T(1), space.grad_output, space.value_ld);
}

template <class T>
static TileInput<T> query_block(const GradientWorkspace<T>& space, int64_t b, int64_t first) {
  const auto rows = [&](T* m, int64_t ld) { return Rows<T>{m ? space.row_of(m, b, first, ld) : nullptr, ld}; };
  TileInput<T> in{};
  in.query = rows(space.query, space.head_ld), in.tangent_query = rows(space.tangent_query, space.head_ld);
  in.grad_output = rows(space.grad_output, space.value_ld);
  return in;
}

// Points the tile at a panel, and fills the elementwise blocks it needs. `block` counts real queries and keys.
template <class T>
static void set_panel(const AttentionParameters& p, const Problem& g, Block block, int panel, GradientScratch<T>& s,
                      TileInput<T>& in) {
  in.key = s.key + panel * s.head_rows * kPanel<T>, in.value = s.value + panel * s.value_rows * kPanel<T>;
  in.tangent_key = g.tangent_key ? s.tangent_key + panel * s.head_rows * kPanel<T> : nullptr;
  in.tangent_value = g.tangent_value ? s.tangent_value + panel * s.value_rows * kPanel<T> : nullptr;
  in.weights = weighted(p, block.query, block.key + block.lanes - 1) ? s.weights : nullptr;
  if (in.weights) fill_log_weights<T, Lanes::keys>(p, g.bias, g.mask, block, s.weights, kPanel<T>);
  in.bias_tangents = g.tangent_bias ? s.bias_tangents : nullptr;
  if (g.tangent_bias) fill_elements<T, Lanes::keys>(g.tangent_bias, block, T(1), s.bias_tangents, kPanel<T>);
  in.dropout = p.dropout_p > 0 ? s.dropout : nullptr;
  if (in.dropout) fill_dropout<T, Lanes::keys>(p, g.seed, block, s.dropout, kPanel<T>);
}

template <class T>
RESCALED_INLINE void clear_elementwise(GradientScratch<T>& s) {  // rows and lanes of padding are read, never used
  for (T* block : {s.weights, s.bias_tangents, s.dropout}) std::memset(block, 0, sizeof(T) * kQueryBlock * kPanel<T>);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
