// SPDX-License-Identifier: BSD-3-Clause
// The elements of the map: u, u', b, c = u - unit b of a score, and their tangents (docs/math.md (12) to (15)).
#pragma once
#include <cmath>
#include <type_traits>

#include "walk.cuh"

namespace rescaled {
namespace {

#if defined(RESCALED_TWIN)
using std::ceil, std::exp2, std::log2;
#endif

// Of a row of the map: c = u - unit b after u and u' are multiplied by `factor`; the gradient's elements are
// u' (c - beta). An element leaves as x half weight: the product of the two may overflow.
template <class T>
struct RowNumbers {
  T reference, factor, unit, beta, square, half, weight, sum_tangent, beta_tangent, teacher_reference, teacher_inverse;
};
static_assert(sizeof(RowNumbers<float>) == kRowNumbers * sizeof(float));

template <class T>
RESCALED_DEVICE void set_row(Form form, T reference, T sum, RowNumbers<T>& n) {
  n.reference = reference;
  n.factor = form == Form::normalized ? T(1) / sum : T(1);
  n.unit = form == Form::normalized ? T(1) : form == Form::rescaled ? sum : exp2(-reference);
  n.half = form == Form::normalized ? T(1) : exp2(reference);
}

// From what was saved; neutral where there is no such row.
template <class T>
RESCALED_DEVICE RowNumbers<T> saved_numbers(const MatrixRegressionParameters& p, const MapProblem& problem, int row) {
  using Number = MatrixRegressionStatistics;
  using Tangent = MatrixRegressionTangents;
  const bool inside = row < p.scores.queries;
  const auto number = [&](const InputView& m, int64_t i) {
    return inside && m.data != nullptr ? at<T>(m, row, i) : T(0);
  };
  const bool saved = inside && problem.saved.data != nullptr, taught = inside && p.source == Target::teacher;
  RowNumbers<T> n{};
  set_row<T>(p.form, number(problem.saved, Number::reference), saved ? at<T>(problem.saved, row, Number::sum) : T(1),
             n);
  n.beta = number(problem.saved, Number::beta), n.square = number(problem.saved, Number::square);
  n.weight = number(problem.weight, 0) * n.half;
  n.sum_tangent = number(problem.saved_tangents, Tangent::sum);
  n.beta_tangent = number(problem.saved_tangents, Tangent::beta);
  n.teacher_reference = taught ? at<T>(problem.values, row, Number::reference) : T(0);
  n.teacher_inverse = taught ? T(1) / at<T>(problem.values, row, Number::sum) : T(1);
  return n;
}

// u and u' against a reference of whole octaves.
template <class T>
struct Pair {
  T u, du;
};
template <bool kTwoSided, class T>
RESCALED_DEVICE Pair<T> pair_of(bool sinh, T score, T reference) {
  const T octaves = score * static_cast<T>(kLog2e);
  if constexpr (!kTwoSided) {
    const T u = exp2_of(octaves - reference);
    return {u, u};
  } else {
    T even, odd;
    cuda::two_sided<T>(octaves, -reference, even, odd);
    return sinh ? Pair<T>{odd, even} : Pair<T>{even, odd};
  }
}

// f(two_sided), a type: the elements' loops know what they are made of.
template <class F>
RESCALED_DEVICE void with_kind(Kind kind, F f) {
  if (kind == Kind::exp)
    f(std::false_type{});
  else
    f(std::true_type{});
}

// What takes no part: b is 0, and the score of exp -inf; two-sided pairs are hidden where they are made.
template <class T, int kTiles>
RESCALED_DEVICE void hide(uint32_t visible, T (&score)[kTiles][4], T (&b)[kTiles][4]) {
  if (visible != ~0u)
    RESCALED_UNROLL for (int j = 0; j < kTiles; ++j)
        RESCALED_UNROLL for (int x = 0; x < 4; ++x) if ((visible >> (4 * j + x) & 1) == 0) score[j][x] = -infinity<T>(),
                                                                                           b[j][x] = T(0);
}

template <class T>
struct Element {
  T u, du, b, c;
};
template <bool kTwoSided, class T>
RESCALED_DEVICE Element<T> element_of(bool sinh, const RowNumbers<T>& n, T score, T b, bool visible) {
  Pair<T> pair = pair_of<kTwoSided>(sinh, score, n.reference);
  if (kTwoSided && !visible) pair = {T(0), T(0)};
  const T u = pair.u * n.factor;
  return {u, kTwoSided ? pair.du * n.factor : u, b, u - n.unit * b};
}

// Tangents of u' and of c, from those of the logit t, of unit b, and of the row's sum.
template <class T>
struct Second {
  T du, c;
};
template <class T>
RESCALED_DEVICE Second<T> second_of(Form form, const Element<T>& e, T t, T target, T sum) {
  const T shrinking = form == Form::normalized ? sum * e.du : T(0), of_sum = form == Form::rescaled ? e.b : e.u;
  return {e.u * t - shrinking, e.du * t - sum * of_sum - target};
}

// Of b.
template <class T>
RESCALED_DEVICE T target_tangent(const MapProblem& problem, int query, int key, bool visible) {
  return visible && problem.tangent_target.data != nullptr ? at<T>(problem.tangent_target, query, key) : T(0);
}

}  // namespace
}  // namespace rescaled
