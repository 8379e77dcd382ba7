// SPDX-License-Identifier: BSD-3-Clause
// What the passes of a matrix regression share: the elements u, u', c of a block of the map, lanes = rows of the map
// (queries), recomputed from scores, target and the numbers of each row.
#pragma once
#include "../../attention/cpu/online.h"
#include "../parameters.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Of each lane: c = u - unit b after u and u' are multiplied by `factor`; the gradient's elements are u' (c - beta).
template <class T>
struct LaneNumbers {
  T *reference, *factor, *unit, *beta, *square;
};
template <class T>
RESCALED_INLINE LaneNumbers<T> take_numbers(Arena& arena) {
  constexpr int64_t lanes = kTileVectors * kLanes<T>;
  return {arena.take<T>(lanes), arena.take<T>(lanes), arena.take<T>(lanes), arena.take<T>(lanes), arena.take<T>(lanes)};
}
template <class T>
RESCALED_INLINE void set_lane(Form form, T reference, T sum, int64_t lane, LaneNumbers<T>& n) {
  n.reference[lane] = reference;
  n.factor[lane] = form == Form::normalized ? T(1) / sum : T(1);
  n.unit[lane] = form == Form::normalized ? T(1)
                 : form == Form::rescaled ? sum
                                          : exp2_vector<T>(broadcast(-reference))[0];
}

// Blocks of scores and of the target, [kKeyBlock][lanes].
template <class T>
struct MatrixScratch : PanelScratch<T> {
  T *scores, *weights, *target;
  MatrixScratch(const MatrixRegressionParameters& p, Arena& arena) : PanelScratch<T>(p.scores, arena) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    scores = arena.take<T>(kKeyBlock * lanes);
    weights = arena.take<T>(kKeyBlock * lanes);
    target = arena.take<T>(kKeyBlock * lanes);
  }
};

RESCALED_INLINE InputView from(InputView m, int64_t row, int64_t column) {
  m.data = static_cast<const char*>(m.data) + (row * m.row + column * m.column) * element_size(m.dtype);
  return m;
}

// Scores, target and, where it is returned, the mask of a block: below 0 what takes no part.
template <class T, int kVectors>
static const T* fetch_block(const AttentionParameters& p, const Problem& problem, InputView target, Block block,
                            Rows<T> key, const T* query, const MatrixScratch<T>& s) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  product_block<T, kVectors>(block.rows, p.head_size, false, key, query, s.scores);
  pack_transposed<T>(from(target, block.query, block.key), block.lanes, block.rows, T(1), s.target, lanes);
  if (!weighted(p, block.query, block.key + block.rows - 1)) return nullptr;
  fill_log_weights<T, Lanes::queries>(p, problem.bias, problem.mask, block, s.weights, lanes);
  return s.weights;
}

// visit(offset in the block, vector, u, u', b, c) for the elements of a block. May overwrite the scores it has seen.
template <class T, bool kTwoSided, int kVectors, class Visit>
RESCALED_INLINE void for_elements(bool sinh, int64_t rows, const T* mask, const MatrixScratch<T>& s,
                                  const LaneNumbers<T>& n, Visit visit) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  Vec<T> reference[kVectors], factor[kVectors], unit[kVectors];
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    reference[j] = load(n.reference + j * kLanes<T>), factor[j] = load(n.factor + j * kLanes<T>);
    unit[j] = load(n.unit + j * kLanes<T>);
  }
  for (int64_t r = 0; r < rows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t at = r * lanes + j * kLanes<T>;
      Vec<T> u, du, b = load(s.target + at);
      if constexpr (!kTwoSided) {
        u = du = exp2_vector<T>(load(s.scores + at) - reference[j]);
      } else {
        Vec<T> even, odd;
        two_sided<T>(load(s.scores + at), -reference[j], even, odd);
        u = sinh ? odd : even, du = sinh ? even : odd;
      }
      if (mask) {
        const Vec<T> zero = {}, w = load(mask + at);
        u = w < zero ? zero : u, du = w < zero ? zero : du, b = w < zero ? zero : b;
      }
      u *= factor[j], du *= factor[j];
      visit(at, j, u, du, b, u - unit[j] * b);
    }
}

// A pass over the map's rows; a Pass has Scratch<T> and, static, task<T, kTwoSided>(p, task, scratch).
template <class Pass, class T>
static void matrix_run(const MatrixRegressionParameters& p, int64_t begin, int64_t end, void* memory) {
  Arena arena(memory);
  typename Pass::template Scratch<T> scratch(p, arena);
  for (int64_t task = begin; task < end; ++task) {
    if (p.scores.kind == Kind::exp)
      Pass::template task<T, false>(p, task, scratch);
    else
      Pass::template task<T, true>(p, task, scratch);
  }
}
template <class Pass, class T>
static MatrixRegressionProgram matrix_program_of(const MatrixRegressionParameters& p) {
  return {{{panel_tasks<T>(p.scores), bytes_of<typename Pass::template Scratch<T>>(p), matrix_run<Pass, T>}}, 1, 0};
}
template <class Pass>
static MatrixRegressionProgram matrix_program(const MatrixRegressionParameters& p) {
  return p.scores.query.dtype == DType::float64 ? matrix_program_of<Pass, double>(p)
                                                : matrix_program_of<Pass, float>(p);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
