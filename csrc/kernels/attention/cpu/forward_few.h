// SPDX-License-Identifier: BSD-3-Clause
// Forward of few queries, as in decoding: keys and values are read once, in vectors, and the time is that of the read.
// Lanes are keys: squares of K are transposed in registers, so that a score is the same chain of fused multiply-adds as
// everywhere. Keys are cut into chunks by shape; a last step joins their sums in a fixed order.
#pragma once
#include <cmath>

#include "few.h"
#include "panel.h"

namespace rescaled::RESCALED_ISA {
namespace {

constexpr int64_t kFewKeysPerChunk = 512;  // by count 64 KB of keys at head size 32: a thread's start costs less
RESCALED_INLINE bool few_queries(const AttentionParameters& p) { return p.queries > 0 && p.queries <= kFewQueries; }

RESCALED_INLINE int64_t few_chunks(const AttentionParameters& p) {
  const int64_t by_heads = 16 / (p.kv_batches * p.group), by_keys = p.keys / kFewKeysPerChunk,
                chunks = by_heads < by_keys ? by_heads : by_keys;
  return chunks < 1 ? 1 : chunks;
}

// The sums of a chunk, relative to 2^reference, one per query.
template <class T>
struct FewSums {
  T *reference, *normalizer, *balance, *output;  // [queries], output [queries][ld]
  int64_t ld;
  FewSums(const AttentionParameters& p, Arena& arena) : ld(round_up(p.value_size, kLanes<T>)) {
    reference = arena.take<T>(p.queries), normalizer = arena.take<T>(p.queries), balance = arena.take<T>(p.queries);
    output = arena.take<T>(p.queries * ld);
  }
};
template <class T>
RESCALED_INLINE FewSums<T> few_sums(const AttentionParameters& p, int64_t task) {
  Arena arena(static_cast<char*>(p.workspace) + task * bytes_of<FewSums<T>>(p));
  return FewSums<T>(p, arena);
}

template <class T>
struct FewScratch {
  T *query, *keys, *values, *scores, *weights, *dropout;  // [queries][D], rows of a block, [queries][kKeyBlock]
  FewScratch(const AttentionParameters& p, Arena& arena) {
    query = arena.take<T>(p.queries * p.head_size), keys = arena.take<T>(kKeyBlock * p.head_size);
    values = arena.take<T>(kKeyBlock * round_up(p.value_size, kLanes<T>));
    for (T** block : {&scores, &weights, &dropout}) *block = arena.take<T>(kFewQueries * kKeyBlock);
  }
};

// scores[q][key] for whole vectors of keys
template <class T, int kQueries>
static __attribute__((noinline)) void few_scores(int64_t rows, int64_t depth, Rows<T> key, const T* query, T* scores) {
  for (int64_t i = 0; i < rows; i += kLanes<T>) {
    Vec<T> s[kQueries] = {};
    for (int64_t d = 0; d < depth; d += kLanes<T>) {
      const int64_t left = depth - d, count = left < kLanes<T> ? left : kLanes<T>;
      Vec<T> x[kLanes<T>];
      RESCALED_UNROLL for (int r = 0; r < kLanes<T>; ++r) {
        const T* from = key.data + (i + r) * key.ld + d;
        x[r] = count == kLanes<T> ? load(from) : load_first(from, count);
      }
      transpose_square<T>(x);
      RESCALED_UNROLL for (int c = 0; c < kLanes<T>; ++c) if (c < count)
          RESCALED_UNROLL for (int q = 0; q < kQueries; ++q) s[q] += broadcast(query[q * depth + d + c]) * x[c];
    }
    RESCALED_UNROLL for (int q = 0; q < kQueries; ++q) store<T>(scores + q * kKeyBlock + i, s[q]);
  }
}

template <class T>
RESCALED_INLINE T sum_of(Vec<T> x) {
  T all = 0;
  RESCALED_UNROLL for (int k = 0; k < kLanes<T>; ++k) all += x[k];
  return all;
}

// One query against a block: the new reference, scores to weights, the sums. Returns 2^(old - new reference).
template <class T, bool kTwoSided>
static T few_weights(bool odd_kind, int64_t rows, const T* weights, T* scores, T& reference, T& normalizer,
                     T& balance) {
  const T infinity = static_cast<T>(__builtin_inf());
  Vec<T> highest = broadcast(reference);
  for (int64_t i = 0; i < rows; i += kLanes<T>) {
    Vec<T> s = load(scores + i);
    if (kTwoSided) s = absolute(s);
    highest = maximum(highest, weights ? s + load(weights + i) : s);
  }
  T top = highest[0];
  for (int k = 1; k < kLanes<T>; ++k) top = highest[k] > top || highest[k] != highest[k] ? highest[k] : top;
  if (kTwoSided) top = round_to_integer<T>(broadcast(top) + T(0.5))[0];
  const T finite = top == -infinity ? T(0) : top;  // nothing attended yet
  const T correction = exp2_vector<T>(broadcast(reference - finite))[0];
  Vec<T> sum = {}, odd_sum = {};
  for (int64_t i = 0; i < rows; i += kLanes<T>) {
    const Vec<T> s = load(scores + i), w = weights ? load(weights + i) : Vec<T>{};
    if constexpr (!kTwoSided) {
      const Vec<T> a = exp2_vector<T>((s + w) - finite);
      sum += a;
      store<T>(scores + i, a);
    } else {
      const Weight<T> weight = split_weight<T>(w - finite);
      Vec<T> even, odd;
      two_sided<T>(s, weight.exponent, even, odd);
      even *= weight.factor, odd *= weight.factor;
      sum += even, odd_sum += odd;
      store<T>(scores + i, odd_kind ? odd : even);
    }
  }
  reference = top;
  normalizer = normalizer * correction + sum_of<T>(sum), balance = balance * correction + sum_of<T>(odd_sum);
  return correction;
}

// output[q][:] = correction[q] output[q][:] + weights[q] V, for kVectors vectors of columns
template <class T, int kQueries, int kVectors>
RESCALED_INLINE void few_columns(int64_t rows, Rows<T> value, int64_t column, const T* weights, const T* correction,
                                 T* output, int64_t ld) {
  Tile<T, kQueries, kVectors> c;
  tile_clear<T, kQueries, kVectors>(c);
  multiply<T, kQueries, kVectors, false>(rows, weights, kKeyBlock, value.data + column, value.ld, c);
  RESCALED_UNROLL for (int q = 0; q < kQueries; ++q) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    T* o = output + q * ld + column + j * kLanes<T>;
    store<T>(o, load(o) * correction[q] + c[q][j]);
  }
}
template <class T, int kQueries>
static __attribute__((noinline)) void few_outputs(int64_t rows, Rows<T> value, const T* weights, const T* correction,
                                                  T* output, int64_t ld) {
  constexpr int wide = kQueries == 1 ? 8 : kQueries == 2 ? 4 : 2;  // accumulators to cover the latency of an addition
  int64_t column = 0;
  for (; column + wide * kLanes<T> <= ld; column += wide * kLanes<T>)
    few_columns<T, kQueries, wide>(rows, value, column, weights, correction, output, ld);
  for (; column < ld; column += kLanes<T>)
    few_columns<T, kQueries, 1>(rows, value, column, weights, correction, output, ld);
}

template <class T, bool kTwoSided, int kQueries>
static void few_task(const AttentionParameters& p, int64_t task, FewScratch<T>& s) {
  const int64_t chunks = few_chunks(p), b = task / chunks, chunk = task % chunks;
  const int64_t blocks = (p.keys + kKeyBlock - 1) / kKeyBlock, each = (blocks + chunks - 1) / chunks * kKeyBlock;
  const int64_t begin = chunk * each, seen = p.causal && p.queries < p.keys ? p.queries : p.keys,
                end = begin + each < seen ? begin + each : seen;
  const Problem problem(p, b);
  const FewSums<T> sums = few_sums<T>(p, task);
  std::memset(sums.output, 0, sizeof(T) * kQueries * sums.ld);
  for (int q = 0; q < kQueries; ++q)
    sums.reference[q] = -static_cast<T>(__builtin_inf()), sums.normalizer[q] = sums.balance[q] = 0;
  pack_rows<T>(problem.query, kQueries, p.head_size, static_cast<T>(p.scale * kLog2e), s.query, kQueries, p.head_size);
  for (int64_t j = begin; j < end; j += kKeyBlock) {
    const int64_t rows = end - j < kKeyBlock ? end - j : kKeyBlock, padded = round_up(rows, kLanes<T>);
    const Rows<T> key = rows_of<T>(from_row(problem.key, j), rows, p.head_size, kLanes<T>, 1, s.keys),
                  value = rows_of<T>(from_row(problem.value, j), rows, p.value_size, 1, kLanes<T>, s.values);
    const Block block{0, j, kQueries, rows};
    few_scores<T, kQueries>(padded, p.head_size, key, s.query, s.scores);
    const bool has_weights = weighted(p, 0, j + rows - 1) || padded != rows;
    if (has_weights) {
      for (int i = 0; i < kQueries * kKeyBlock; ++i) s.weights[i] = -static_cast<T>(__builtin_inf());
      fill_log_weights<T, Lanes::keys>(p, problem.bias, problem.mask, block, s.weights, kKeyBlock);
    }
    T correction[kQueries];
    for (int q = 0; q < kQueries; ++q)
      correction[q] =
          few_weights<T, kTwoSided>(p.kind == Kind::sinh, padded, has_weights ? s.weights + q * kKeyBlock : nullptr,
                                    s.scores + q * kKeyBlock, sums.reference[q], sums.normalizer[q], sums.balance[q]);
    if (p.dropout_p > 0) {
      fill_dropout<T, Lanes::keys>(p, problem.seed, block, s.dropout, kKeyBlock);
      for (int q = 0; q < kQueries; ++q)
        for (int64_t i = 0; i < rows; ++i) s.scores[q * kKeyBlock + i] *= s.dropout[q * kKeyBlock + i];
    }
    few_outputs<T, kQueries>(rows, value, s.scores, correction, sums.output, sums.ld);
  }
}

template <class T>
static void few_run(const AttentionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  FewScratch<T> scratch(p, arena);
  const auto run = [&](int64_t task, auto queries) {
    if (p.kind == Kind::exp)
      few_task<T, false, decltype(queries)::value>(p, task, scratch);
    else
      few_task<T, true, decltype(queries)::value>(p, task, scratch);
  };
  for (int64_t task = begin; task < end; ++task) {
    if (p.queries == 1)
      run(task, Constant<1>());
    else if (p.queries == 2)
      run(task, Constant<2>());
    else if (p.queries == 3)
      run(task, Constant<3>());
    else
      run(task, Constant<4>());
  }
}

// Joins the chunks of a matrix, each scaled to the highest reference, in order.
template <class T>
static void few_join_run(const AttentionParameters& p, int64_t begin, int64_t end, void*) {
  const int64_t chunks = few_chunks(p);
  const T infinity = static_cast<T>(__builtin_inf());
  for (int64_t b = begin; b < end; ++b) {
    const FewSums<T> all = few_sums<T>(p, b * chunks);
    const OutputView output = matrix(p.output, p, b), balance = matrix(p.balance, p, b),
                     log_normalizer = matrix(p.log_normalizer, p, b);
    for (int64_t q = 0; q < p.queries; ++q) {
      T top = -infinity;
      for (int64_t c = 0; c < chunks; ++c) {
        const T reference = few_sums<T>(p, b * chunks + c).reference[q];
        top = reference > top || reference != reference ? reference : top;
      }
      const T finite = top == -infinity ? T(0) : top;
      T n = 0, odd = 0, *out = all.output + q * all.ld;
      for (int64_t c = 0; c < chunks; ++c) {
        const FewSums<T> more = few_sums<T>(p, b * chunks + c);
        const T factor = exp2_vector<T>(broadcast(more.reference[q] - finite))[0], *from = more.output + q * more.ld;
        n += factor * more.normalizer[q], odd += factor * more.balance[q];
        for (int64_t d = 0; d < p.value_size; ++d) out[d] = (c ? out[d] : T(0)) + factor * from[d];
      }
      const T inverse = n == T(0) ? T(0) : T(1) / n;  // 0: a row without keys
      with_type(output.dtype, output.data, [&](auto* to) {
        for (int64_t d = 0; d < p.value_size; ++d) assign(to[q * output.row + d * output.column], out[d] * inverse);
      });
      const T one = n == T(0) ? T(0) : T(1) + (n - n);  // NaN where the normalizer is not finite
      static_cast<T*>(balance.data)[q * balance.row] = p.kind == Kind::sinh ? odd * inverse : one;
      static_cast<T*>(log_normalizer.data)[q * log_normalizer.row] =
          static_cast<T>(n == T(0) ? -__builtin_inf() : double{top} * kLn2 + std::log(double{n}));
    }
  }
}

template <class T>
static AttentionProgram few_program(const AttentionParameters& p) {
  const int64_t matrices = p.kv_batches * p.group, tasks = matrices * few_chunks(p);
  return {{{tasks, bytes_of<FewScratch<T>>(p), few_run<T>}, {matrices, 0, few_join_run<T>}},
          2,
          tasks * bytes_of<FewSums<T>>(p)};
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
