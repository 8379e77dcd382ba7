// SPDX-License-Identifier: BSD-3-Clause
// Which block of threads does what, from the shapes and the device's shared memory alone. Host and device.
//
// Every pass is the same walk: a block keeps 16 rows a warp (queries, or keys), meets the columns (keys, or queries)
// tile by tile, forms the scores' products, turns them into weights, and adds weights times columns to its outputs.
// Backward is two walks, by queries for dQ and by keys for dK and dV: the scores are formed twice (7 units of work for
// 5), nothing is summed across blocks, and the result is the same in every run.
#pragma once
#include "../view.h"

namespace rescaled {

enum class Pass { forward, jvp, query, query_second, key, key_second, bias, bias_second };

RESCALED_HOST_DEVICE constexpr bool by_keys(Pass pass) { return pass == Pass::key || pass == Pass::key_second; }
RESCALED_HOST_DEVICE constexpr bool is_second(Pass pass) {
  return pass == Pass::query_second || pass == Pass::key_second || pass == Pass::bias_second;
}
RESCALED_HOST_DEVICE constexpr bool is_gradient(Pass pass) { return pass != Pass::forward && pass != Pass::jvp; }
RESCALED_HOST_DEVICE constexpr bool is_bias(Pass pass) { return pass == Pass::bias || pass == Pass::bias_second; }

constexpr int kWarpRows = 16, kMaxWarps = 8;

// How the operands meet: all their columns in shared memory ("resident"), or in steps of kChunk ("blocked"), by warps;
// or, on Hopper, by warpgroups, with all sizes rounded up to 64 or 128.
enum class Path { blocked, resident, group64, group128 };
RESCALED_HOST_DEVICE constexpr int group_size(Path path) {
  return path == Path::group64 ? 64 : path == Path::group128 ? 128 : 0;
}

// The kinds a kernel serves. The blocked ones, for head sizes that are rare, serve all: half the code to compile.
enum class Kinds { exp, two_sided, all };
RESCALED_HOST_DEVICE constexpr Kinds kinds_of(Kind kind, Path path) {
  return path == Path::blocked ? Kinds::all : kind == Kind::exp ? Kinds::exp : Kinds::two_sided;
}

// Columns of a tile. Each costs a thread (columns / 2) registers for every product of scores: forward has one, JVP and
// the gradients two, the second pass of the double backward four, beside the outputs' 64 (128 by keys). A warpgroup's
// products of scores want 64 (with fewer, reading the rows takes longer than multiplying them), as far as registers go.
template <class T>
RESCALED_HOST_DEVICE constexpr int tile_columns(Pass pass, Path path, Kinds kinds) {
  if (path == Path::group128 && pass == Pass::key_second) return 32;
  if (path == Path::group128 && kinds != Kinds::exp && (pass == Pass::key || pass == Pass::query_second)) return 32;
  if (path == Path::group64 && pass == Pass::key_second) return 32;
  if (group_size(path) > 0) return pass == Pass::forward ? 128 : 64;
  if (sizeof(T) == 8 || path == Path::blocked) return 16;
  if (pass == Pass::forward) return sizeof(T) == 2 ? 64 : 32;
  return by_keys(pass) || is_second(pass) ? 16 : 32;
}
// Columns of the output that one block makes; a wider output takes several blocks, each with the scores anew.
template <class T>
RESCALED_HOST_DEVICE constexpr int output_columns(Path path) {
  if (group_size(path) > 0) return group_size(path);
  return sizeof(T) == 8 ? 32 : path == Path::resident ? 128 : 64;  // float64: two registers a number
}
constexpr int kChunk = 64;  // depth of a product's step where the operands do not fit into shared memory

// The operands of the two sides; index 0 and 2 have head_size columns, 1 and 3 value_size.
//   queries: query, grad_output, tangent_query, -          keys: key, value, tangent_key, tangent_value
constexpr int kOperands = 4;
RESCALED_HOST_DEVICE int64_t operand_columns(const AttentionParameters& p, int i) {
  return i % 2 == 0 ? p.head_size : p.value_size;
}
RESCALED_HOST_DEVICE const Input* operand(const AttentionParameters& p, Pass pass, bool keys, int i) {
  const bool tangents = pass == Pass::jvp || is_second(pass);
  const Input* m = nullptr;
  if (i == 0) m = keys ? &p.key : &p.query;
  if (i == 1) m = keys ? &p.value : (is_gradient(pass) ? &p.grad_output : nullptr);
  if (i == 2 && tangents) m = keys ? &p.tangent_key : &p.tangent_query;
  if (i == 3 && tangents && keys) m = &p.tangent_value;
  return m != nullptr && m->data != nullptr ? m : nullptr;
}

// Whether a warpgroup's pass holds operand i of the queries or keys: as zeros where the problem has none.
RESCALED_HOST_DEVICE constexpr bool in_group(Pass pass, bool keys, int i) {
  const bool tangents = pass == Pass::jvp || is_second(pass);
  return i == 0 || (i == 1 && (keys || is_gradient(pass))) || (i == 2 && tangents) || (i == 3 && tangents && keys);
}

RESCALED_HOST_DEVICE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
RESCALED_HOST_DEVICE int least(int a, int b) { return a < b ? a : b; }

struct Device {
  int64_t shared_bytes;  // that a block can ask for
  bool has_groups;       // Hopper's instructions, and kernels compiled for them
};

struct Plan {
  int warps = 4, stages = 1;
  Path path = Path::resident;
  int64_t row_blocks = 1, output_chunks = 1, key_splits = 1, blocks = 0, shared_bytes = 0;
};

// What a query brings to the gradients (weights.cuh): arrays of the arithmetic type, their ends padded with queries
// that have no keys, so that a tile's are copied whole.
constexpr int kQueryArrays = 7, kMaxColumns = 64;
RESCALED_HOST_DEVICE int64_t padded_queries(const AttentionParameters& p) { return round_up(p.queries, kMaxColumns); }

// Where the tiles lie in shared memory behind the block's problems (walk.cuh), in elements; -1: absent.
struct Layout {
  int row[kOperands] = {}, column[kOperands] = {}, numbers = 0;  // the latter two of stage 0
  int stage = 0, elements = 0, stages = 1;                       // elements of one stage; of all; how many stages
};
template <class T>
RESCALED_HOST_DEVICE int tile_ld(int64_t columns) {  // padded so that no two rows of a fragment share a bank
  return static_cast<int>(round_up(columns, 16)) + (sizeof(T) == 2 ? 8 : 4);
}
// Outputs leave through shared memory, 32 columns at a time, for stores of whole lines.
constexpr int kStoreColumns = 32, kStoreLd = kStoreColumns + 4;
constexpr int kProblemBytes = 1024;  // and what panels are aligned to
template <class T>
constexpr int kPerNumber =
    sizeof(T) == 8 ? 1 : 4 / static_cast<int>(sizeof(T));  // elements of the arithmetic type's size
// A warpgroups' layout is that of a whole block of rows, so that it is known when its kernel is compiled.
RESCALED_HOST_DEVICE constexpr Layout group_layout(Pass pass, Path path, Kinds kinds) {
  Layout l{};
  const int rows = kWarpRows * kMaxWarps, columns = tile_columns<uint16_t>(pass, path, kinds), size = group_size(path);
  for (int i = 0; i < kOperands; ++i) {
    l.row[i] = in_group(pass, by_keys(pass), i) ? l.elements : -1;
    if (l.row[i] >= 0) l.elements += rows * size;
  }
  for (int i = 0; i < kOperands; ++i) {
    l.column[i] = in_group(pass, !by_keys(pass), i) ? l.elements + l.stage : -1;
    if (l.column[i] >= 0) l.stage += columns * size;
  }
  l.numbers = l.elements + l.stage;
  constexpr int aligned = kProblemBytes / 2;
  if (by_keys(pass)) l.stage += (kQueryArrays * columns * 2 + aligned - 1) / aligned * aligned;
  // Three stages, if they fit, let the two warpgroups be at different tiles (group_walk.cuh).
  const int most = (227 << 10) / 2 - 2 * aligned;  // Hopper's, less the problems and their alignment
  l.stages = l.elements + 3 * l.stage <= most ? 3 : 2;
  l.elements += l.stages * l.stage;
  return l;
}
template <class T>
RESCALED_HOST_DEVICE Layout layout_of(const AttentionParameters& p, Pass pass, const Plan& plan) {
  if (group_size(plan.path) > 0) return group_layout(pass, plan.path, kinds_of(p.kind, plan.path));
  Layout l{};
  const bool keys = by_keys(pass), resident = plan.path == Path::resident;
  const int rows = kWarpRows * plan.warps, columns = tile_columns<T>(pass, plan.path, kinds_of(p.kind, plan.path));
  const int wide = output_columns<T>(plan.path) > kChunk ? output_columns<T>(plan.path) : kChunk;
  for (int i = 0; i < kOperands; ++i) {
    l.row[i] = operand(p, pass, keys, i) == nullptr ? -1 : resident ? l.elements : 0;
    if (resident && l.row[i] >= 0) l.elements += rows * tile_ld<T>(operand_columns(p, i));
  }
  if (!resident) l.elements = rows * tile_ld<T>(kChunk);
  for (int i = 0; i < kOperands; ++i) {
    l.column[i] = operand(p, pass, !keys, i) == nullptr ? -1 : l.elements + (resident ? l.stage : 0);
    if (resident && l.column[i] >= 0) l.stage += columns * tile_ld<T>(operand_columns(p, i));
  }
  if (!resident) l.stage = columns * tile_ld<T>(wide);
  l.numbers = l.elements + l.stage;
  if (keys) l.stage += kQueryArrays * columns * kPerNumber<T>;
  l.stages = plan.stages;
  l.elements += l.stages * l.stage;
  const int leaving = rows * kStoreLd * kPerNumber<T>;
  if (l.elements < leaving) l.elements = leaving;
  return l;
}

template <class T>
int64_t shared_bytes_of(const AttentionParameters& p, Pass pass, const Plan& plan) {
  const int64_t aligning =
      group_size(plan.path) > 0 ? kProblemBytes : 0;  // where the block's memory begins is not said
  return aligning + kProblemBytes + layout_of<T>(p, pass, plan).elements * static_cast<int64_t>(sizeof(T));
}

// Few queries and many keys (a cache, at inference) leave most of a GPU idle: the forward then shares the keys among
// several blocks, at least 256 keys each, until there are about 128 blocks, and merges what they found. By shape alone.
inline int64_t key_splits(const AttentionParameters& p) {
  const int64_t blocks = batches(p) * ((p.queries + 63) / 64);
  if (p.causal || blocks >= 64) return 1;
  const int64_t splits = least(least((127 + blocks) / blocks, p.keys / 256), int64_t{64});
  return splits < 2 ? 1 : splits;
}

// The path of warpgroups, or blocked. They serve 16-bit elements, sizes up to 128, a positive scale, and more rows than
// two warps have on either side: all passes of a problem alike, for the bits of its scores.
template <class T>
Path group_path(const AttentionParameters& p, Pass pass, bool has_groups) {
  const int64_t size = p.head_size > p.value_size ? p.head_size : p.value_size;
  const bool serves = least(p.queries, p.keys) > 2 * kWarpRows && size <= 128 && p.scale > 0;
  if (!has_groups || sizeof(T) != 2 || is_bias(pass) || !serves) return Path::blocked;
  return size <= 64 ? Path::group64 : Path::group128;
}

template <class T>
Plan plan_of(const AttentionParameters& p, Pass pass, const Device& device) {
  Plan plan;
  const int64_t rows = by_keys(pass) ? p.keys : p.queries;
  // 8 warps share a tile of columns where there are rows for them (forward and JVP: the outputs of both are small).
  const int most = !is_gradient(pass) && rows > 4 * kWarpRows ? 8 : rows > 2 * kWarpRows ? 4 : rows > kWarpRows ? 2 : 1;
  bool fits = false;
  // Beyond any GPU's memory nothing is tried: the layout counts in 32 bits.
  const bool small = p.head_size <= 1 << 16 && p.value_size <= 1 << 16;
  const auto fit = [&](Path path, int warps, int stages) {
    plan.path = path, plan.warps = warps, plan.stages = stages;
    plan.shared_bytes = shared_bytes_of<T>(p, pass, plan);
    fits = plan.shared_bytes <= device.shared_bytes;
  };
  if (const Path path = group_path<T>(p, pass, device.has_groups); path != Path::blocked)
    for (int warps = rows > 4 * kWarpRows ? 8 : 4; warps >= 4 && !fits; warps /= 2) fit(path, warps, 2);
  // As many rows as fit, for they share the columns' tiles; two stages, which hide the copies, where both fit.
  for (int warps = most; small && warps >= 1 && !fits; warps /= 2)
    for (int stages = 2; stages >= 1 && !fits; --stages) fit(Path::resident, warps, stages);
  if (!fits) fit(Path::blocked, most < 4 ? most : 4, 1);  // every depth: 45 KB in float64, the widest
  plan.row_blocks = (rows + kWarpRows * plan.warps - 1) / (kWarpRows * plan.warps);
  const int64_t wide = output_columns<T>(plan.path);
  const int64_t width = pass == Pass::query || pass == Pass::query_second ? p.head_size
                        : by_keys(pass) ? (p.head_size > p.value_size ? p.head_size : p.value_size)
                                        : p.value_size;
  plan.output_chunks = is_bias(pass) || width <= wide ? 1 : (width + wide - 1) / wide;
  if (pass == Pass::forward) plan.key_splits = key_splits(p);
  plan.blocks = (by_keys(pass) ? p.kv_batches : batches(p)) * plan.row_blocks * plan.output_chunks * plan.key_splits;
  return plan;
}

}  // namespace rescaled
