// SPDX-License-Identifier: BSD-3-Clause
// Loss with gradient, and Hessian products, from A, b and x alone: one read of A. A warp keeps its part of a tile of
// rows in registers between their logits and their sums; parts of rows, warps and blocks are joined in a fixed order.
#pragma once
#include "join.cuh"
#include "passes.cuh"

namespace rescaled {
namespace {

template <Vectors kVectors>
constexpr bool kIsProduct = kVectors == Vectors::product;

// Of a warp in shared memory: logits (and t), then coefficients.
template <class T, Vectors kVectors>
RESCALED_HOST_DEVICE int logit_count(const RowPlan& cut) {
  return (kIsProduct<kVectors> ? 2 : 1) * cut.tile_rows;
}
template <class T, Vectors kVectors>
RESCALED_HOST_DEVICE int warp_bytes(const RowPlan& cut) {
  using S = Number<T>;
  return static_cast<int>(logit_count<T, kVectors>(cut) * sizeof(S) +
                          cut.tile_rows * sizeof(Coefficients<S, kVectors>));
}
RESCALED_HOST_DEVICE int block_columns(const RowPlan& cut, int width) { return cut.team * cut.lanes * width; }
// While tiles are read; then, in the same memory, while the block's teams are joined.
template <class T, Vectors kVectors>
int64_t pass_shared_bytes(const PassPlan& plan) {
  using S = Number<T>;
  const RowPlan& cut = plan.rows;
  const int64_t reading = cut.warps * (warp_bytes<T, kVectors>(cut) + 4 * kLoads * int64_t{sizeof(S)}),
                joining = cut.teams * plan.vectors *
                              block_columns(cut, plan.rows.whole ? kWidth<T, true> : kWidth<T, false>) *
                              int64_t{sizeof(S)} +
                          64 + 4 * int64_t{sizeof(Sums)} + int64_t{sizeof(Joint<4>)};
  return at_least(reading, joining);
}

template <class T, Vectors kVectors, bool kWhole>
struct PassBlock {
  using S = Number<T>;
  static constexpr int kCount = kVectorCount<kVectors>, kWide = kWidth<T, kWhole>;
  using Row = rescaled::Row<S>;
  using Coefficients = rescaled::Coefficients<S, kVectors>;
  const RegressionParameters& p;
  const PassPlan& plan;
  const RowPlan& cut;
  unsigned char* const memory;
  const int warp, lane, team, member, column_chunk;
  const int64_t chunk, batch;
  const Columns<T, kWhole> columns;
  const RowInputs<S> in;
  S* const logits;
  Coefficients* const coefficients;
  RowSums<S, kVectors> sums;
  S acc[kCount + 1][kWide] = {};

  RESCALED_MEMBER PassBlock(const RegressionParameters& parameters, const PassPlan& the_plan, unsigned char* shared)
      : p(parameters),
        plan(the_plan),
        cut(the_plan.rows),
        memory(shared),
        warp(thread_index() / 32),
        lane(thread_index() % 32),
        team(warp / the_plan.rows.team),
        member(warp % the_plan.rows.team),
        column_chunk(static_cast<int>(block_index() % the_plan.rows.column_chunks)),
        chunk(block_index() / the_plan.rows.column_chunks % the_plan.rows.chunks),
        batch(block_index() / the_plan.rows.column_chunks / the_plan.rows.chunks),
        columns(column_chunk * block_columns(cut, kWide) + member * 32 * kWide, lane % cut.lanes, cut.lanes,
                static_cast<int>(p.columns)),
        in(p, batch),
        logits(reinterpret_cast<S*>(memory + warp * warp_bytes<T, kVectors>(cut))),
        coefficients(reinterpret_cast<Coefficients*>(logits + logit_count<T, kVectors>(cut))),
        sums(p) {}

  RESCALED_MEMBER S* kept(int64_t offset) const {
    return reinterpret_cast<S*>(static_cast<char*>(p.workspace) + offset) + batch * p.rows;
  }
  RESCALED_MEMBER S t_of(int k) const { return kIsProduct<kVectors> ? logits[cut.tile_rows + k] : S(0); }

  RESCALED_MEMBER void load_vector(int side, S (&to)[kWide]) const {
    columns.load(side == 0 ? matrix(p.x, p, batch) : matrix(p.v, p, batch), to);
  }

  // The tile's logits (and t) in the warp's shared memory.
  RESCALED_MEMBER void fill_logits(const Tile<T, kWhole>& tile, S (&x)[kWide], S (&v)[kWide], int64_t first,
                                   int step) const {
    if (plan.given) {
      for (int k = lane; k < cut.tile_rows; k += 32) {
        const int64_t row = first + k < p.rows ? first + k : p.rows - 1;
        logits[k] = kept(plan.logits)[row];
        if (kIsProduct<kVectors>) logits[cut.tile_rows + k] = kept(plan.along)[row];
      }
      return warp_barrier();
    }
    const int per = 32 / cut.lanes, place = lane / cut.lanes;
    RESCALED_UNROLL for (int side = 0; side < (kIsProduct<kVectors> ? 2 : 1); ++side) {
      S s[kLoads] = {};
      if constexpr (!kWhole) load_vector(side, side == 0 ? x : v);  // registers are for addresses
      tile.multiply(side == 0 ? x : v, s);
      sum_over(s, cut.lanes);
      if (lane % cut.lanes == 0)
        RESCALED_UNROLL for (int i = 0; i < kLoads; ++i) logits[side * cut.tile_rows + i * per + place] = s[i];
    }
    if (cut.team == 1) return warp_barrier();
    // Across the warps of a team, by turns in two places: one barrier a tile.
    constexpr int kNumbers = (kIsProduct<kVectors> ? 2 : 1) * kLoads;
    S* const partial =
        reinterpret_cast<S*>(memory + cut.warps * warp_bytes<T, kVectors>(cut)) + step % 2 * cut.warps * kNumbers;
    warp_barrier();
    if (lane < kNumbers) partial[warp * kNumbers + lane] = logits[lane];
    block_barrier();
    if (lane < kNumbers) {
      S sum = S(0);
      for (int i = 0; i < cut.team; ++i) sum += partial[(team * cut.team + i) * kNumbers + lane];
      logits[lane] = sum;
    }
    warp_barrier();
  }

  // The exponent and, at first, the center for the tile; what is summed so far follows.
  RESCALED_MEMBER void prepare(int64_t first, bool is_first) {
    S top = -infinity<S>();
    for (int k = lane; k < cut.tile_rows; k += 32)
      top = greater(top, sums.exponent_of(logits[k], p.form == Form::plain ? in.load(first + k).b : S(0)));
    const double by = sums.raise(top, is_first);
    if (is_first) {
      double product = 0, square = 0;
      for (int k = lane; k < cut.tile_rows; k += 32) {
        const Row row = in.load(first + k);
        S u, du;
        sums.phi(row, logits[k], u, du);
        product += static_cast<double>(row.row_weight * u * row.b);
        square += static_cast<double>(row.row_weight * row.b * row.b);
      }
      sums.predict(product, square);
    } else if (by > 0) {
      const double factor = cuda::power_of_two(-by);
      RESCALED_UNROLL for (int k = 0; k < kCount; ++k) {
        const S scale = static_cast<S>(cuda::scaled(1, cuda::degree_of<kVectors>(k), factor));
        RESCALED_UNROLL for (int e = 0; e < kWide; ++e) acc[k][e] *= scale;
      }
    }
  }

  RESCALED_MEMBER void add_rows(const Tile<T, kWhole>& tile) {
    const int per = 32 / cut.lanes, place = lane / cut.lanes;
    const bool penalized = p.penalty_weight.data != nullptr;
    RESCALED_UNROLL for (int i = 0; i < kLoads; ++i) {
      const Coefficients c = coefficients[i * per + place];
      RESCALED_UNROLL for (int e = 0; e < kWide; ++e) {
        const S a = value_of(tile.pack[i].x[e]);
        RESCALED_UNROLL for (int k = 0; k < kCount; ++k) acc[k][e] += c.of[k] * a;
        if (penalized) acc[kCount][e] += c.of[kCount] * a;
      }
    }
  }

  RESCALED_MEMBER void run() {
    S x[kWide] = {}, v[kWide] = {};
    if (kWhole && !plan.given) load_vector(0, x);
    if (kWhole && !plan.given && kIsProduct<kVectors>) load_vector(1, v);
    const InputView A = matrix(p.A, p, batch);
    const int64_t begin = chunk * cut.chunk_rows;
    const int tile_rows = cut.tile_rows, per = 32 / cut.lanes;
    RESCALED_ROLLED for (int step = 0; step < cut.tiles; ++step) {
      if (begin + int64_t{step} * cut.teams * tile_rows >= p.rows) break;  // the same for all teams
      const int64_t first = begin + (int64_t{step} * cut.teams + team) * tile_rows;
      Tile<T, kWhole> tile;
      tile.load(A, columns, first + lane / cut.lanes, per, p.rows);
      Row next = in.load(lane < tile_rows ? first + lane : p.rows);
      fill_logits(tile, x, v, first, step);
      prepare(first, step == 0);
      RESCALED_ROLLED for (int k = lane; k < tile_rows; k += 32) {
        const Row row = next;
        next = in.load(k + 32 < tile_rows ? first + k + 32 : p.rows);
        if (plan.keeps_logits && row.there && member == 0) kept(plan.logits)[first + k] = logits[k];
        sums.add(row, logits[k], t_of(k), coefficients[k]);
      }
      warp_barrier();
      add_rows(tile);
    }
    write();
  }

  // Joins the block's teams into its part.
  RESCALED_MEMBER void write() const {
    block_barrier();
    const int width = block_columns(cut, kWide), first = column_chunk * width;
    S* const vectors = reinterpret_cast<S*>(memory);
    Sums* const of_teams = reinterpret_cast<Sums*>(
        memory + (cut.teams * plan.vectors * width * static_cast<int>(sizeof(S)) + 63) / 64 * 64);
    Joint<4>& joint = *reinterpret_cast<Joint<4>*>(of_teams + 4);
    RESCALED_UNROLL for (int k = 0; k < kCount + 1; ++k) RESCALED_UNROLL for (int e = 0; e < kWide; ++e) {
      const double sum = sum_between(static_cast<double>(acc[k][e]), cut.lanes);
      if (k < plan.vectors && lane < cut.lanes)
        vectors[(team * plan.vectors + k) * width + columns.at(e) - first] = static_cast<S>(sum);
    }
    const Sums all = sums.all();
    if (member == 0 && lane == 0) of_teams[team] = all;
    block_barrier();
    join_parts(joint, of_teams, cut.teams);
    const int64_t part = batch * cut.chunks + chunk;
    char* const workspace = static_cast<char*>(p.workspace);
    if (thread_index() == 0 && column_chunk == 0)
      reinterpret_cast<Sums*>(workspace + plan.level[0].sums)[part] = joint.all;
    S* const to = reinterpret_cast<S*>(workspace + plan.level[0].vectors) + part * plan.vectors * p.columns;
    for (int i = thread_index(); i < plan.vectors * width; i += block_threads()) {
      const int k = i / width, column = i % width;
      const auto get = [&](int of_team, int vector) {
        return vectors[(of_team * plan.vectors + vector) * width + column];
      };
      if (first + column < p.columns)
        to[k * p.columns + first + column] = static_cast<S>(joined<kVectors>(joint, cut.teams, k, get));
    }
  }
};

template <class T, Vectors kVectors, bool kWhole>
__global__ void __launch_bounds__(32 * kPassWarps, kWhole && sizeof(T) == 4 && !kIsProduct<kVectors> ? 2 : 1)
    pass_walk(const __grid_constant__ RegressionParameters p, const __grid_constant__ PassPlan plan) {
  RESCALED_SHARED(memory);
  PassBlock<T, kVectors, kWhole>(p, plan, memory).run();
}

template <class T, Vectors kVectors>
const char* launch_pass(const RegressionParameters& p, PassPlan plan, void* stream) {
  plan.shared_bytes = pass_shared_bytes<T, kVectors>(plan);
  const int64_t blocks = p.batches * plan.rows.chunks * plan.rows.column_chunks;
  return launch(plan.rows.whole ? pass_walk<T, kVectors, true> : pass_walk<T, kVectors, false>, blocks,
                32 * plan.rows.warps, plan.shared_bytes, stream, p, plan);
}

}  // namespace
}  // namespace rescaled
