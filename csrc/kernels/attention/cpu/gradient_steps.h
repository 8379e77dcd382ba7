// SPDX-License-Identifier: BSD-3-Clause
// The steps of backward and double backward: row data, the tasks over keys, the sum of dQ's copies.
#pragma once
#include "gradient.h"

namespace rescaled::RESCALED_ISA {
namespace {

constexpr int64_t kRowBlock = 64;  // rows of a task of the first and the last step
RESCALED_INLINE int64_t row_blocks(const AttentionParameters& p) { return (p.queries + kRowBlock - 1) / kRowBlock; }

template <class T>
struct RowScratch {
  T *grad_output, *output;  // [kRowBlock][Dv]
  RowScratch(const AttentionParameters& p, Arena& arena)
      : grad_output(arena.take<T>(kRowBlock * p.value_size)), output(arena.take<T>(kRowBlock * p.value_size)) {}
};

template <class T>
RESCALED_INLINE T dot(const T* x, const T* y, int64_t count) {
  Vec<T> sum[2] = {};
  int64_t i = 0;
  for (; i + 2 * kLanes<T> <= count; i += 2 * kLanes<T>)
    RESCALED_UNROLL for (int k = 0; k < 2; ++k) sum[k] += load(x + i + k * kLanes<T>) * load(y + i + k * kLanes<T>);
  sum[0] += sum[1];
  T all = 0;
  RESCALED_UNROLL for (int k = 0; k < kLanes<T>; ++k) all += sum[0][k];
  for (; i < count; ++i) all += x[i] * y[i];
  return all;
}

// to[i] = <grad_output_i, output_i>
template <class T>
static void row_dots(const AttentionParameters& p, InputView grad_output, InputView output, int64_t first,
                     int64_t count, RowScratch<T>& s, T* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0;
  if (!grad_output || !output) return;
  const Rows<T> g = rows_of<T>(from_row(grad_output, first), count, p.value_size, 1, 1, s.grad_output),
                w = rows_of<T>(from_row(output, first), count, p.value_size, 1, 1, s.output);
  for (int64_t i = 0; i < count; ++i) to[i] = dot(g.data + i * g.ld, w.data + i * w.ld, p.value_size);
}

// delta = <G, W> + g_rho rho - g_l;  deltad = <G, Wd> + g_rho rhod
template <class E, bool kSecond>
static void rows_run(const AttentionParameters& p, int64_t begin, int64_t end, void* memory) {
  using T = Sum<E>;
  Arena arena(memory);
  RowScratch<T> scratch(p, arena);
  const GradientWorkspace<E> space = workspace<E>(p);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / row_blocks(p), first = task % row_blocks(p) * kRowBlock;
    const int64_t left = p.queries - first, count = left < kRowBlock ? left : kRowBlock;
#if defined(__AVX512BF16__)
    pack_queries(p, Problem(p, b), space, b, first, count);
#endif
    T* rows = space.rows + b * kRowArrays * padded_queries(p) + first;
    const auto row = [&](RowArray a) { return rows + a * padded_queries(p); };
    const InputView grad_output = matrix(p.grad_output, p, b), grad_balance = matrix(p.grad_balance, p, b),
                    grad_log = matrix(p.grad_log_normalizer, p, b);
    const InputView log_normalizer = matrix(p.saved_log_normalizer, p, b), balance = matrix(p.saved_balance, p, b);
    row_dots<T>(p, grad_output, matrix(p.saved_output, p, b), first, count, scratch, row(kDelta));
    if (kSecond) row_dots<T>(p, grad_output, matrix(p.jvp_output, p, b), first, count, scratch, row(kTangentDelta));
    const InputView jvp_balance = matrix(p.jvp_balance, p, b), jvp_log = matrix(p.jvp_log_normalizer, p, b);
    const int64_t padded = round_up(count, kTileRows);
    for (int64_t i = 0; i < padded; ++i) {
      const bool real = i < count;
      const double l = real ? element(log_normalizer, first + i) : -__builtin_inf();
      const T g = real && grad_balance ? static_cast<T>(element(grad_balance, first + i)) : T(0);
      row(kShift)[i] = row_shift<T>(l);
      const Weight<T> weight = split_weight<T>(broadcast(-row(kShift)[i]));
      row(kExponent)[i] = weight.exponent[0], row(kFactor)[i] = weight.factor[0];
      row(kGradBalance)[i] = g;
      if (!real) row(kDelta)[i] = 0;
      if (real) row(kDelta)[i] += g * static_cast<T>(element(balance, first + i));
      if (real && grad_log) row(kDelta)[i] -= static_cast<T>(element(grad_log, first + i));
      if (kSecond) {
        if (!real) row(kTangentDelta)[i] = 0;
        if (real) row(kTangentDelta)[i] += g * static_cast<T>(element(jvp_balance, first + i));
        row(kTangentNormalizer)[i] = real ? static_cast<T>(element(jvp_log, first + i)) : T(0);
      }
    }
  }
}

// out[depth][kPanel] += a^T b (+ c^T d), rows of a and c broadcast, of the first kVectors vectors
template <class T, int kVectors>
static __attribute__((noinline)) void accumulate_key_vectors(int64_t rows, int64_t depth, Rows<T> a, const T* b,
                                                             Rows<T> c, const T* d, T* out) {
  for (int64_t i = 0; i < depth; i += kTileRows) {
    Tile<T, kTileRows, kVectors> tile;
    tile_load<T, kTileRows, kVectors>(tile, out + i * kPanel<T>, kPanel<T>);
    multiply<T, kTileRows, kVectors, true>(rows, a.data + i, a.ld, b, kPanel<T>, tile);
    if (c.data) multiply<T, kTileRows, kVectors, true>(rows, c.data + i, c.ld, d, kPanel<T>, tile);
    tile_store<T, kTileRows, kVectors>(tile, out + i * kPanel<T>, kPanel<T>);
  }
}
template <class T>
RESCALED_INLINE void accumulate_keys(int64_t rows, int64_t depth, bool narrow, Rows<T> a, const T* b, Rows<T> c,
                                     const T* d, T* out) {
  if (narrow)
    accumulate_key_vectors<T, kNarrow>(rows, depth, a, b, c, d, out);
  else
    accumulate_key_vectors<T, kTileVectors>(rows, depth, a, b, c, d, out);
}
#if defined(__AVX512BF16__)
// The same with pairs of queries: a and c are transposed.
template <class E>
static void accumulate_keys(int64_t rows, int64_t depth, bool, Rows<Pair> a, const Pair* b, Rows<Pair> c, const Pair* d,
                            float* out) {
  const auto add = [&](Rows<Pair> x, const Pair* y) {
    if (x.data)
      pair_product<kTileVectors>(round_up(depth, kTileRows), pairs_of(rows), true, x, y, kPanel<E>, out, kPanel<E>);
  };
  add(a, b), add(c, d);
}
#endif

// out[rows][columns] (+)= s key (+ s1 tangent_key) over the first `keys` of the block's keys in panels, for columns
// [column, column + kVectors vectors)
template <class T, int kVectors>
RESCALED_INLINE void accumulate_query_columns(bool add, int64_t rows, int64_t keys, int64_t block_keys, int64_t column,
                                              const T* s, Rows<T> key, const T* s1, Rows<T> tangent_key, T* out,
                                              int64_t ld) {
  for (int64_t i = 0; i < rows; i += kTileRows) {
    Tile<T, kTileRows, kVectors> tile;
    if (add)
      tile_load<T, kTileRows, kVectors>(tile, out + i * ld + column, ld);
    else
      tile_clear<T, kTileRows, kVectors>(tile);
    for (int64_t k = 0, panel = 0; k < keys; ++panel) {
      const int64_t left = panel_span<T>(block_keys, panel).count, count = keys - k < left ? keys - k : left,
                    at = (panel * kQueryBlock + i) * kPanel<T>;
      multiply<T, kTileRows, kVectors, false>(count, s + at, kPanel<T>, key.data + k * key.ld + column, key.ld, tile);
      if (tangent_key.data)
        multiply<T, kTileRows, kVectors, false>(count, s1 + at, kPanel<T>,
                                                tangent_key.data + k * tangent_key.ld + column, tangent_key.ld, tile);
      k += count;
    }
    tile_store<T, kTileRows, kVectors>(tile, out + i * ld + column, ld);
  }
}
template <class T>
static __attribute__((noinline)) void accumulate_query(bool add, int64_t rows, int64_t keys, int64_t block_keys,
                                                       const T* s, Rows<T> key, const T* s1, Rows<T> tangent_key,
                                                       int64_t columns, T* out, int64_t ld) {
  int64_t column = 0;
  for (; column + 2 * kLanes<T> <= columns; column += 2 * kLanes<T>)
    accumulate_query_columns<T, 2>(add, rows, keys, block_keys, column, s, key, s1, tangent_key, out, ld);
  if (column < columns)
    accumulate_query_columns<T, 1>(add, rows, keys, block_keys, column, s, key, s1, tangent_key, out, ld);
}
#if defined(__AVX512BF16__)
template <class E>
static void accumulate_query(bool add, int64_t rows, int64_t keys, int64_t, const Pair* s, Rows<Pair> key,
                             const Pair* s1, Rows<Pair> tangent_key, int64_t columns, float* out, int64_t ld) {
  const auto product = [&](bool more, const Pair* x, Rows<Pair> y, int64_t column) {
    pair_product<2>(round_up(rows, kTileRows), pairs_of(keys), more, {x, GradientScratch<E>::kRowLd}, y.data + column,
                    y.ld, out + column, ld);
  };
  for (int64_t column = 0; column < columns; column += 2 * 16) {
    product(add, s, key, column);
    if (tangent_key.data) product(true, s1, tangent_key, column);
  }
}

// Turns a block [rows][kPanel] into pairs of queries; and with `to_rows` into rows, pairs of keys, 0 from key `count`
// on.
template <class E>
static __attribute__((noinline)) void pair_block(int64_t rows, int64_t count, const float* from, Pair* to,
                                                 Pair* to_rows) {
  pair_rows<kTileVectors>(rows, rows, from, to);
  if (!to_rows) return;
  const auto vector = [&](int64_t r, int64_t x) {
    const int64_t left = count - x, there = left < 0 ? 0 : left < 16 ? left : 16;
    return (FloatVector)_mm512_maskz_mov_ps(static_cast<__mmask16>((1u << there) - 1),
                                            (__m512)load(from + r * kPanel<E> + x));
  };
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t x = 0; x < kPanel<E>; x += 32) {
      Pair* const at = to_rows + r * GradientScratch<E>::kRowLd + x / 2;
      if (x + 16 < kPanel<E>)
        _mm512_storeu_si512(at, join(vector(r, x), vector(r, x + 16)));
      else
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(at), (__m256i)_mm512_cvtneps_pbh((__m512)vector(r, x)));
    }
}
#endif

// The three blocks of a panel as factors: of the sums over queries, and of that over keys.
template <class E>
struct PanelFactors {
  const E *value_weights, *score_gradient, *tangent_score_gradient;
};
// Computes them: queries [skip, rows) of a block, and the keys of a panel.
template <class E, bool kTwoSided, bool kSecond>
RESCALED_INLINE PanelFactors<E> panel_factors(const AttentionParameters& p, const TileInput<E>& in,
                                              RowData<Sum<E>> row_data, int64_t skip, int64_t rows,
                                              [[maybe_unused]] int panel, [[maybe_unused]] Span keys,
                                              const GradientScratch<E>& s) {
#if defined(__AVX512BF16__)
  const TileOutput<float> out{s.value_weights, s.score_gradient, s.tangent_score_gradient, s.tangent_e, false};
  for (int64_t r = skip; r < rows; r += kPairedRows) {
    const int64_t next = r + kPairedRows < rows ? r + kPairedRows : rows, count = round_up(next - r, kTileRows),
                  to = (r - skip) / 2 * kPanel<E>, to_rows = r * GradientScratch<E>::kRowLd + keys.first / 2;
    gradient_block<E, kTwoSided, kSecond>(p, r, next, in, row_data, out);
    pair_block<E>(count, keys.count, out.value_weights, s.value_pairs + to, nullptr);
    pair_block<E>(count, keys.count, out.score_gradient, s.score_pairs + to, s.score_rows + to_rows);
    if (kSecond)
      pair_block<E>(count, keys.count, out.tangent_score_gradient, s.tangent_score_pairs + to,
                    s.tangent_score_rows + to_rows);
  }
  return {s.value_pairs, s.score_pairs, s.tangent_score_pairs};
#else
  const int64_t at = (panel * kQueryBlock + skip) * kPanel<E>;
  const TileOutput<E> out{s.value_weights + at, s.score_gradient + at, s.tangent_score_gradient + at, s.tangent_e,
                          false};
  gradient_block<E, kTwoSided, kSecond>(p, skip, rows, in, row_data, out);
  return {out.value_weights, out.score_gradient, out.tangent_score_gradient};
#endif
}
// Scores of the first `skip` queries with the keys of a panel: 0, as factors of the sum over keys.
template <class E>
RESCALED_INLINE void clear_skipped(int64_t skip, [[maybe_unused]] int64_t first_key, [[maybe_unused]] int panel,
                                   const GradientScratch<E>& s) {
#if defined(__AVX512BF16__)
  for (E* m : {s.score_rows, s.tangent_score_rows})
    for (int64_t r = 0; r < skip; ++r)
      std::memset(m + r * GradientScratch<E>::kRowLd + first_key / 2, 0, sizeof(E) * kPanel<E> / 2);
#else
  for (E* m : {s.score_gradient, s.tangent_score_gradient})
    std::memset(m + panel * kQueryBlock * kPanel<E>, 0, sizeof(E) * skip * kPanel<E>);
#endif
}

// One query block of problem `b` against one key block; `add`: dQ's copy has been written before.
template <class E, bool kTwoSided, bool kSecond>
static __attribute__((noinline)) void gradient_pair(const AttentionParameters& p, const GradientWorkspace<E>& space,
                                                    int64_t b, bool add, Block block, Rows<E> key, Rows<E> tangent_key,
                                                    GradientScratch<E>& s, QueryCopy<Sum<E>> grad_query) {
  const Problem g(p, b);
  TileInput<E> in = query_block<E>(p, g, space, b, block.query, block.rows, s);
  const RowData<Sum<E>> row_data = space.row_data(b, block.query);
  // Rows of queries as they are, or of pairs transposed, from query `first` of the block on.
  const auto columns = [&]([[maybe_unused]] Rows<E> rows, [[maybe_unused]] E* transposed,
                           [[maybe_unused]] int64_t depth, int64_t first) {
#if defined(__AVX512BF16__)
    return Rows<E>{space.columns_of(transposed, b, block.query + first, depth), space.columns_ld};
#else
    return after(rows, first);
#endif
  };
  int64_t seen = block.lanes;  // keys of the block that some query of it attends
  for (int panel = 0; panel * kPanel<E> < block.lanes; ++panel) {
    const Span keys = panel_span<E>(block.lanes, panel);
    int64_t skip = 0;  // leading queries before every key of the panel
    if (p.causal && block.query < block.key + keys.first)
      skip = (block.key + keys.first - block.query) / kTileRows * kTileRows;
    if (skip >= block.rows) {
      seen = keys.first;
      break;
    }
    if (skip) clear_skipped<E>(skip, keys.first, panel, s);
    set_panel<E>(p, g, {block.query, block.key + keys.first, block.rows, keys.count}, panel, s, in);
    const PanelFactors<E> f = panel_factors<E, kTwoSided, kSecond>(p, in, row_data, skip, block.rows, panel, keys, s);
    const int64_t count_rows = block.rows - skip;
    if (p.grad_value && in.grad_output.data)
      accumulate_keys<E>(count_rows, p.value_size, in.narrow,
                         columns(in.grad_output, space.grad_output_columns, p.value_size, skip), f.value_weights,
                         {nullptr, 0}, nullptr, s.grad_value + panel * s.value_rows * kPanel<E>);
    if (p.grad_key)
      accumulate_keys<E>(count_rows, p.head_size, in.narrow, columns(in.query, space.query_columns, p.head_size, skip),
                         f.score_gradient, columns(in.tangent_query, space.tangent_query_columns, p.head_size, skip),
                         f.tangent_score_gradient, s.grad_key + panel * s.head_rows * kPanel<E>);
  }
  if (p.grad_query) {
    const E *rows, *tangent_rows;
    if constexpr (kPairs<E>)
      rows = s.score_rows, tangent_rows = s.tangent_score_rows;
    else
      rows = s.score_gradient, tangent_rows = s.tangent_score_gradient;
    accumulate_query<E>(add, block.rows, seen, block.lanes, rows, key, tangent_rows, tangent_key, query_ld<E>(p),
                        grad_query.data + block.query * grad_query.ld, grad_query.ld);
  }
}

template <class E, bool kTwoSided, bool kSecond>
static void gradient_task(const AttentionParameters& p, int64_t task, GradientScratch<E>& s) {
  const GradientWorkspace<E> space = workspace<E>(p);
  const int64_t chunks = key_chunks<E>(p), kv = task / chunks, chunk = task % chunks;
  clear_elementwise(p, s);
  const OutputView grad_key = matrix(p.grad_key, p, kv * p.group), grad_value = matrix(p.grad_value, p, kv * p.group);
  for (int64_t index = chunk; index < key_blocks<E>(p);
       index += chunks) {  // every chunk gets early and late keys: causal ones cost alike
    const int64_t most = keys_per_block<E>(p), first = index * most, left = p.keys - first,
                  keys = left < most ? left : most;
    const Problem shared(p, kv * p.group);
    for (int panel = 0; panel * kPanel<E> < keys; ++panel) {
      std::memset(s.grad_key + panel * s.head_rows * kPanel<E>, 0, sizeof(Sum<E>) * s.head_rows * kPanel<E>);
      std::memset(s.grad_value + panel * s.value_rows * kPanel<E>, 0, sizeof(Sum<E>) * s.value_rows * kPanel<E>);
      const auto [at, count] = panel_span<E>(keys, panel);
      pack_key_panel<E>(p, shared, first + at, count, panel, s);
    }
    const auto pack = [&](InputView m, E* to) {
      const Rows<E> packed{to, packed_ld<E>(query_ld<E>(p))};
#if defined(__AVX512BF16__)
      pack_pairs<true>(from_row(m, first), keys, p.head_size, depth_of<E>(keys), query_ld<E>(p), to, packed.ld);
#else
      pack_rows<E>(from_row(m, first), keys, p.head_size, E(1), to, keys, packed.ld);
#endif
      return packed;
    };
    const Rows<E> key = pack(shared.key, s.key_rows);
    const Rows<E> tangent_key = shared.tangent_key ? pack(shared.tangent_key, s.tangent_key_rows) : Rows<E>{nullptr, 0};
    for (int64_t h = 0; h < p.group; ++h) {
      const int64_t b = kv * p.group + h;
      for (int64_t q = first_row<E>(p, index); q < p.queries; q += kQueryBlock) {
        const int64_t rows = p.queries - q < kQueryBlock ? p.queries - q : kQueryBlock;
        gradient_pair<E, kTwoSided, kSecond>(p, space, b, index != chunk, {q, first, rows, keys}, key, tangent_key, s,
                                             p.grad_query ? space.grad_query_of(p, b, chunk) : QueryCopy<Sum<E>>{});
      }
    }
    for (int panel = 0; panel * kPanel<E> < keys; ++panel) {
      const auto [at, count] = panel_span<E>(keys, panel);
      // The packed queries carry scale log2(e); the gradient wants scale.
      if (grad_key)
        unpack_panel<E>(row_of(grad_key, first + at), count, p.head_size, tangent_scale<E>(p),
                        s.grad_key + panel * s.head_rows * kPanel<E>, kPanel<E>);
      if (grad_value)
        unpack_panel<E>(row_of(grad_value, first + at), count, p.value_size, Sum<E>(1),
                        s.grad_value + panel * s.value_rows * kPanel<E>, kPanel<E>);
    }
  }
}

template <class E, bool kSecond>
static void gradient_run(const AttentionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  GradientScratch<E> scratch(p, arena);
  take_tiles();
  for (int64_t task = begin; task < end; ++task) {
    if (p.kind == Kind::exp)
      gradient_task<E, false, kSecond>(p, task, scratch);
    else
      gradient_task<E, true, kSecond>(p, task, scratch);
  }
  give_tiles_back();
}

template <class E>
static void sum_query_run(const AttentionParameters& p, int64_t begin, int64_t end, void*) {
  using T = Sum<E>;
  const GradientWorkspace<E> space = workspace<E>(p);
  const int64_t columns = query_ld<E>(p), chunks = key_chunks<E>(p);
  const T scale = static_cast<T>(p.scale);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t b = task / row_blocks(p), first = task % row_blocks(p) * kRowBlock;
    const int64_t left = p.queries - first, count = left < kRowBlock ? left : kRowBlock;
    const OutputView out = row_of(matrix(p.grad_query, p, b), first);
    const auto copy = [&](int64_t chunk) {  // its rows, written from its first one on if there are keys
      const QueryCopy<T> all = space.grad_query_of(p, b, chunk);
      return QueryCopy<T>{all.data + first * all.ld, all.ld};
    };
    const QueryCopy<T> sum = copy(0);
    for (int64_t i = 0; p.keys == 0 && i < count; ++i) std::memset(sum.data + i * sum.ld, 0, sizeof(T) * columns);
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
      const QueryCopy<T> more = copy(chunk);
      for (int64_t start = first_row<E>(p, chunk) - first, i = start > 0 ? start : 0; i < count; ++i)
        for (int64_t d = 0; d < columns; ++d) sum.data[i * sum.ld + d] += more.data[i * more.ld + d];
    }
    for (int64_t i = 0; i < count; ++i)
      with_type(out.dtype, out.data,
                [&, row = i * out.row, column = out.column, from = sum.data + i * sum.ld](auto* to) {
                  if (column == 1)  // a loop of its own, which the compiler makes vectors of
                    for (int64_t d = 0; d < p.head_size; ++d) assign(to[row + d], scale * from[d]);
                  else
                    for (int64_t d = 0; d < p.head_size; ++d) assign(to[row + d * column], scale * from[d]);
                });
  }
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
