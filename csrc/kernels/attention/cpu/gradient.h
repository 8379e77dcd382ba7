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
//
// Pairs take kPairedRows of a block at a time from sums to factors; what stays are the factors, half as large. With
// VDPBF16PS 256 x 4, 32 rows at a time, is 4-9 % faster than 64 x 4, and 2 % faster than 128 x 4 (Zen 4, 32 KB + 1 MB).
#if defined(__AMX_BF16__)
constexpr int64_t kQueryBlock = 128, kPairedRows = 128;
#elif defined(__AVX512BF16__)
constexpr int64_t kQueryBlock = 256, kPairedRows = 32;
#else
constexpr int64_t kQueryBlock = kVectorBytes == 64 ? 64 : 128;
#endif
constexpr int kKeyPanels = 4;
constexpr int64_t kKeysPerChunk = 256;
template <class E>
inline constexpr int64_t kMostKeysPerBlock = kKeyPanels * kPanel<E>;

RESCALED_INLINE int64_t padded_queries(const AttentionParameters& p) { return round_up(p.queries, kTileRows); }
template <class E>
RESCALED_INLINE int64_t query_ld(const AttentionParameters& p) {
  return round_up(p.head_size, kPairs<E> ? kPairColumns : kLanes<Sum<E>>);
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
// Keys of a block: up to kKeyPanels panels, fewer where a chunk has fewer, and blocks alike, to a vector.
template <class E>
RESCALED_INLINE int64_t keys_per_block(const AttentionParameters& p) {
  const int64_t chunks = wanted_chunks(p), each = (panels_of<E>(p.keys) + chunks - 1) / chunks;
  const int64_t most = kPanel<E> * (each < 1            ? 1
                                    : each < kKeyPanels ? each
                                                        : kKeyPanels),
                blocks = (p.keys + most - 1) / most, unit = kPairs<E> ? kPanel<E> : kLanes<Sum<E>>;
  return blocks > 1 ? round_up((p.keys + blocks - 1) / blocks, unit) : most;
}
template <class E>
RESCALED_INLINE int64_t key_blocks(const AttentionParameters& p) {
  return (p.keys + keys_per_block<E>(p) - 1) / keys_per_block<E>(p);
}
template <class E>
RESCALED_INLINE int64_t key_chunks(const AttentionParameters& p) {
  const int64_t wanted = wanted_chunks(p), blocks = key_blocks<E>(p);
  return blocks < 1 ? 1 : wanted < blocks ? wanted : blocks;
}
// The first row of queries that key block `block` meets: those before it are masked where the mask is causal.
template <class E>
RESCALED_INLINE int64_t first_row(const AttentionParameters& p, int64_t block) {
  return p.causal ? block * keys_per_block<E>(p) / kTileRows * kTileRows : 0;
}

// A chunk's copy of dQ: rows of query_ld numbers. The first is the gradient itself where that is laid out so.
template <class T>
struct QueryCopy {
  T* data;
  int64_t ld;
};
template <class E>
RESCALED_INLINE bool first_copy_is_gradient(const AttentionParameters& p) {
  return p.grad_query && p.grad_query.dtype == kDType<Sum<E>> && p.grad_query.column == 1 &&
         p.head_size == query_ld<E>(p) && p.queries % kTileRows == 0;
}

template <class E>
struct GradientWorkspace {
  using T = Sum<E>;
  T *rows, *grad_query;  // [batches][kRowArrays][padded_queries], [batches][copies][padded_queries][query_ld]
  // Pairs: what every key block reads, packed once, as rows [batches][padded_queries][head_ld, value_ld] and
  // transposed, [batches][D, Dv][columns_ld]. Absent: nullptr.
  E *query, *tangent_query, *grad_output, *query_columns, *tangent_query_columns, *grad_output_columns;
  int64_t padded, head_ld, value_ld, columns_ld, in_place, copies;
  GradientWorkspace(const AttentionParameters& p, Arena& arena)
      : padded(padded_queries(p)),
        head_ld(packed_ld<E>(depth_of<E>(p.head_size))),
        value_ld(packed_ld<E>(depth_of<E>(p.value_size))),
        columns_ld(packed_ld<E>(depth_of<E>(padded))),
        in_place(first_copy_is_gradient<E>(p)),
        copies(p.grad_query ? key_chunks<E>(p) - in_place : 0) {
    const int64_t all = batches(p) * padded;
    rows = arena.take<T>(all * kRowArrays);
    grad_query = arena.take<T>(all * copies * query_ld<E>(p));
    const auto take = [&](const Input& m, int64_t count) { return kPairs<E> && m ? arena.take<E>(count) : nullptr; };
    query = take(p.query, all * head_ld), tangent_query = take(p.tangent_query, all * head_ld);
    grad_output = take(p.grad_output, all * value_ld);
    const int64_t columns = batches(p) * columns_ld;
    query_columns = take(p.query, columns * column_rows(p.head_size));
    tangent_query_columns = take(p.tangent_query, columns * column_rows(p.head_size));
    grad_output_columns = take(p.grad_output, columns * column_rows(p.value_size));
  }
  static int64_t column_rows(int64_t depth) { return round_up(depth, kPairColumns); }
  RowData<T> row_data(int64_t b, int64_t row) const { return {rows + b * kRowArrays * padded + row, padded}; }
  QueryCopy<T> grad_query_of(const AttentionParameters& p, int64_t b, int64_t chunk) const {
    if (chunk < in_place) {
      const OutputView gradient = matrix(p.grad_query, p, b);
      return {static_cast<T*>(gradient.data), gradient.row};
    }
    const int64_t ld = query_ld<E>(p);
    return {grad_query + (b * copies + chunk - in_place) * padded * ld, ld};
  }
  E* row_of(E* m, int64_t b, int64_t row, int64_t ld) const { return m + (b * padded + row) * ld; }
  // Of a matrix with `depth` columns, transposed, from query `row` on.
  E* columns_of(E* m, int64_t b, int64_t row, int64_t depth) const {
    return m ? m + b * column_rows(depth) * columns_ld + row / 2 : nullptr;
  }
};
template <class E>
RESCALED_INLINE GradientWorkspace<E> workspace(const AttentionParameters& p) {
  Arena arena(p.workspace);
  return GradientWorkspace<E>(p, arena);
}

// Packed panels of a key block, and the blocks of one query block against it. As factors, the three blocks of [queries]
// x [keys] are the sums themselves; or pairs: in pairs of queries, and two of them also in rows, pairs of keys.
template <class E>
struct GradientScratch {
  using T = Sum<E>;
  static constexpr int kSumPanels = kPairs<E> ? 1 : kKeyPanels;
  static constexpr int64_t kRowLd = kMostKeysPerBlock<E> / 2 + 16;  // of such rows: an odd number of lines
  E *key, *value, *tangent_key, *tangent_value;                     // [kKeyPanels][depth][kPanel]
  T *grad_key, *grad_value;                                         // [kKeyPanels][depth, padded to kTileRows][kPanel]
  E *key_rows, *tangent_key_rows;                                   // [kMostKeysPerBlock][packed_ld]; pairs: of keys
  T *value_weights, *score_gradient, *tangent_score_gradient;       // [kSumPanels][kQueryBlock][kPanel]
  T *weights, *bias_tangents, *dropout, *tangent_e;                 // [kQueryBlock][kPanel]
  E *value_pairs, *score_pairs, *tangent_score_pairs;               // [kQueryBlock / 2][kPanel]
  E *score_rows, *tangent_score_rows;                               // [kQueryBlock][kRowLd]
  E *query, *tangent_query, *grad_output;                           // not pairs: [kQueryBlock][head_ld, value_ld]
  int64_t head_depth, value_depth, head_rows, value_rows, head_ld, value_ld;
  GradientScratch(const AttentionParameters& p, Arena& arena)
      : head_depth(depth_of<E>(p.head_size)),
        value_depth(depth_of<E>(p.value_size)),
        head_rows(round_up(p.head_size, kTileRows)),
        value_rows(round_up(p.value_size, kTileRows)),
        head_ld(packed_ld<E>(p.head_size)),
        value_ld(packed_ld<E>(p.value_size)) {
    const int64_t head = kMostKeysPerBlock<E> * head_depth, columns = kMostKeysPerBlock<E> * value_depth;
    key = arena.take<E>(head), grad_key = arena.take<T>(kMostKeysPerBlock<E> * head_rows);
    value = arena.take<E>(columns), grad_value = arena.take<T>(kMostKeysPerBlock<E> * value_rows);
    tangent_key = arena.take<E>(p.tangent_key ? head : 0), tangent_value = arena.take<E>(p.tangent_value ? columns : 0);
    const int64_t rows = kMostKeysPerBlock<E> * packed_ld<E>(query_ld<E>(p)) / (kPairs<E> ? 2 : 1);
    key_rows = arena.take<E>(rows), tangent_key_rows = arena.take<E>(p.tangent_key ? rows : 0);
    for (T** block : {&value_weights, &score_gradient, &tangent_score_gradient})
      *block = arena.take<T>(kSumPanels * kQueryBlock * kPanel<E>);
    for (T** block : {&weights, &bias_tangents, &dropout, &tangent_e}) *block = arena.take<T>(kQueryBlock * kPanel<E>);
    for (E** block : {&value_pairs, &score_pairs, &tangent_score_pairs})
      *block = arena.take<E>(kPairs<E> ? kQueryBlock / 2 * kPanel<E> : 0);
    for (E** block : {&score_rows, &tangent_score_rows}) *block = arena.take<E>(kPairs<E> ? kQueryBlock * kRowLd : 0);
    const auto block = [&](bool wanted, int64_t ld) {
      return arena.take<E>(!kPairs<E> && wanted ? kQueryBlock * ld : 0);
    };
    query = block(true, head_ld), tangent_query = block(!!p.tangent_query, head_ld);
    grad_output = block(!!p.grad_output, value_ld);
  }
};

// Packs `count` keys from `key` on as panel `panel`: [depth][kPanel], lanes beyond the last key are 0.
template <class E>
static void pack_key_panel(const AttentionParameters& p, const Problem& g, int64_t key, int64_t count, int panel,
                           GradientScratch<E>& s) {
  const auto pack = [&](InputView m, int64_t columns, int64_t depth, E* to) {
    if (m) pack_panel<E>(from_row(m, key), count, columns, Sum<E>(1), to + panel * depth * kPanel<E>, kPanel<E>);
  };
  pack(g.key, p.head_size, s.head_depth, s.key), pack(g.value, p.value_size, s.value_depth, s.value);
  pack(g.tangent_key, p.head_size, s.head_depth, s.tangent_key),
      pack(g.tangent_value, p.value_size, s.value_depth, s.tangent_value);
}

#if defined(__AVX512BF16__)
// Packs rows [first, first + count) of one problem into the workspace.
static void pack_queries(const AttentionParameters& p, const Problem& g, const GradientWorkspace<Pair>& space,
                         int64_t b, int64_t first, int64_t count) {
  const int64_t rows = round_up(count, kTileRows);
  const auto pack = [&](InputView m, int64_t columns, Pair* to, int64_t ld, Pair* transposed) {
    if (!m) return;
    pack_pairs<false>(from_row(m, first), count, columns, rows, depth_of<Pair>(columns), space.row_of(to, b, first, ld),
                      ld);
    pack_pairs_transposed<true>(from_row(m, first), count, columns, depth_of<Pair>(rows), space.column_rows(columns),
                                space.columns_of(transposed, b, first, columns), space.columns_ld);
  };
  pack(g.query, p.head_size, space.query, space.head_ld, space.query_columns);
  pack(g.tangent_query, p.head_size, space.tangent_query, space.head_ld, space.tangent_query_columns);
  pack(g.grad_output, p.value_size, space.grad_output, space.value_ld, space.grad_output_columns);
}
#endif

// The rows of queries [first, first + count): of the workspace; or packed here, for the keys of one block, which is
// half a percent of its products and spares what packing all of them at once would touch of memory.
template <class E>
static TileInput<E> query_block(const AttentionParameters& p, [[maybe_unused]] const Problem& g,
                                [[maybe_unused]] const GradientWorkspace<E>& space, [[maybe_unused]] int64_t b,
                                int64_t first, [[maybe_unused]] int64_t count,
                                [[maybe_unused]] const GradientScratch<E>& s) {
  TileInput<E> in{};
#if defined(__AVX512BF16__)
  const auto rows = [&](E* m, int64_t ld) { return Rows<E>{m ? space.row_of(m, b, first, ld) : nullptr, ld}; };
  in.query = rows(space.query, space.head_ld), in.tangent_query = rows(space.tangent_query, space.head_ld);
  in.grad_output = rows(space.grad_output, space.value_ld);
#else
  const auto rows = [&](InputView m, int64_t columns, E factor, E* to, int64_t ld) {
    if (m) pack_rows<E>(from_row(m, first), count, columns, factor, to, round_up(count, kTileRows), ld);
    return Rows<E>{m ? to : nullptr, ld};
  };
  const E scale = packed_scale<E>(p);
  in.query = rows(g.query, p.head_size, scale, s.query, s.head_ld);
  in.tangent_query = rows(g.tangent_query, p.head_size, scale, s.tangent_query, s.head_ld);
  in.grad_output = rows(g.grad_output, p.value_size, E(1), s.grad_output, s.value_ld);
#endif
  in.score_factor = score_scale<E>(p), in.tangent_factor = tangent_scale<E>(p);
  return in;
}

// Points the tile at a panel, and fills the elementwise blocks it needs. `block` counts real queries and keys.
template <class E>
static void set_panel(const AttentionParameters& p, const Problem& g, Block block, int panel, GradientScratch<E>& s,
                      TileInput<E>& in) {
  using T = Sum<E>;
  in.key = s.key + panel * s.head_depth * kPanel<E>, in.value = s.value + panel * s.value_depth * kPanel<E>;
  in.tangent_key = g.tangent_key ? s.tangent_key + panel * s.head_depth * kPanel<E> : nullptr;
  in.tangent_value = g.tangent_value ? s.tangent_value + panel * s.value_depth * kPanel<E> : nullptr;
  in.weights = weighted(p, block.query, block.key + block.lanes - 1) ? s.weights : nullptr;
  if (in.weights) fill_log_weights<T, Lanes::keys>(p, g.bias, g.mask, block, s.weights, kPanel<E>);
  in.bias_tangents = g.tangent_bias ? s.bias_tangents : nullptr;
  if (g.tangent_bias) fill_elements<T, Lanes::keys>(g.tangent_bias, block, T(1), s.bias_tangents, kPanel<E>);
  in.narrow = !kPairs<E> && block.lanes <= kNarrow * kLanes<T>;
  in.dropout = p.dropout_p > 0 ? s.dropout : nullptr;
  if (in.dropout) fill_dropout<T, Lanes::keys>(p, g.seed, block, s.dropout, kPanel<E>);
}

template <class E>  // rows and lanes of padding are read, never used
RESCALED_INLINE void clear_elementwise(const AttentionParameters& p, GradientScratch<E>& s) {
  const auto clear = [](bool used, Sum<E>* block) {
    if (used) std::memset(block, 0, sizeof(Sum<E>) * kQueryBlock * kPanel<E>);
  };
  clear(p.bias || p.mask || p.causal, s.weights), clear(!!p.tangent_bias, s.bias_tangents);
  clear(p.dropout_p > 0, s.dropout);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
