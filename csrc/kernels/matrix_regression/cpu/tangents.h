// SPDX-License-Identifier: BSD-3-Clause
// The tangent of a block of the map along (query, key, target), docs/math.md (15).
#pragma once
#include "elements.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Tangents of scores, in octaves, and of the target, [kKeyBlock][lanes].
template <class T>
struct TangentBlocks {
  T *tangent_scores, *tangent_target;
  TangentBlocks(const MatrixRegressionParameters& p, Arena& arena) {
    constexpr int64_t size = kKeyBlock * kTileVectors * kLanes<T>;
    tangent_scores = arena.take<T>(size), tangent_target = arena.take<T>(p.tangent_target ? size : 0);
  }
};
// Fills that of the target, 0 where the mask hides it.
template <class T, Lanes kSide, int kVectors>
RESCALED_INLINE void fetch_tangent_target(InputView tangent, Block block, const T* mask, T* to) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  if (!tangent) return;
  fetch_dense<T, kSide>(tangent, block, to, lanes);
  hide<T>(mask, block.rows * lanes, to);
}

// Numbers of the rows of a tangent.
template <class T>
struct RowTangents {
  T *sum, *beta;
};
template <class T>
RESCALED_INLINE RowTangents<T> take_tangents(Arena& arena, int64_t rows) {
  return {arena.take<T>(rows), arena.take<T>(rows)};
}
template <class T>
RESCALED_INLINE void set_saved_tangent(InputView saved, int64_t row, bool inside, int64_t x, RowTangents<T>& n) {
  using Number = MatrixRegressionTangents;
  n.sum[x] = inside ? at<T>(saved, row, Number::sum) : T(0);
  n.beta[x] = inside ? at<T>(saved, row, Number::beta) : T(0);
}

// What the elements' tangents are made of.
template <class T>
struct ElementTangents {
  Vec<T> t, target;  // of the logit, and unit times that of b
};
template <class T>
RESCALED_INLINE ElementTangents<T> load_tangents(const T* scores, const T* target, int64_t at, Vec<T> unit) {
  return {load(scores + at) * T(kLn2), target ? unit * load(target + at) : Vec<T>{}};
}

// Of u' and of c, from those of the row's sum.
template <class T>
struct Second {
  Vec<T> du, c;
};
template <class T>
RESCALED_INLINE Second<T> second(Form form, Vec<T> u, Vec<T> du, Vec<T> b, ElementTangents<T> along, Vec<T> sum) {
  const Vec<T> shrinking = form == Form::normalized ? sum * du : Vec<T>{}, of_sum = form == Form::rescaled ? b : u;
  return {u * along.t - shrinking, du * along.t - sum * of_sum - along.target};
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
