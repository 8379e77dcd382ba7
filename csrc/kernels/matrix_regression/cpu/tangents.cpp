// SPDX-License-Identifier: BSD-3-Clause
// Along tangents of query, key and target, lanes = rows of the map:
//
//   tangents           numbers of the rows: of the loss, of the sum of u, of beta
//   gradient_tangent   dG K + G dK, from those numbers
#include "tangents.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
struct TangentPanel {
  T *query, *tangent_query, *output;  // [d][lanes]; no tangent: nullptr
  RowNumbers<T> numbers;
  TeacherPanel<T> teacher;
  RowTangents<T> tangents;
  T* loss;
};
template <class T>
struct TangentScratch : MatrixScratch<T>, TangentBlocks<T> {
  TangentPanel<T> panels[kPanelsPerTask];
  TangentScratch(const MatrixRegressionParameters& p, Arena& arena)
      : MatrixScratch<T>(p, arena), TangentBlocks<T>(p, arena) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    const int64_t depth = p.scores.head_size;
    for (TangentPanel<T>& panel : panels) {
      panel.query = arena.take<T>(depth * lanes);
      panel.tangent_query = p.scores.tangent_query ? arena.take<T>(depth * lanes) : nullptr;
      panel.output = arena.take<T>(p.rows ? round_up(depth, kTileRows) * lanes : 0);
      panel.numbers = take_numbers<T>(arena), panel.teacher = take_teacher<T>(p, lanes, arena);
      panel.tangents = take_tangents<T>(arena, lanes), panel.loss = arena.take<T>(lanes);
    }
  }
};

struct Tangents {
  template <class T>
  static void start(const MatrixRegressionParameters&, int64_t, int64_t, int64_t, TangentPanel<T>& panel) {
    for (int64_t x = 0; x < kTileVectors * kLanes<T>; ++x)
      panel.loss[x] = panel.tangents.sum[x] = panel.tangents.beta[x] = 0;
  }
  template <class T, bool kTwoSided, int kVectors>
  static void block(const MatrixRegressionParameters& p, Block block, const BlockRows<T>&, const T* mask,
                    TangentPanel<T>& panel, TangentScratch<T>& s) {
    const Each<T, Lanes::queries, kVectors> unit(panel.numbers.unit), beta(panel.numbers.beta);
    const T* const target = p.tangent_target ? s.tangent_target : nullptr;
    const bool rescaled = p.form == Form::rescaled;
    Vec<T> loss[kVectors] = {}, sum[kVectors] = {}, inner[kVectors] = {};
    for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                         [&](int64_t at, int64_t r, int j, Vec<T> u, Vec<T> du, Vec<T> b, Vec<T> c) {
                                           const ElementTangents<T> along =
                                               load_tangents<T>(s.tangent_scores, target, at, unit.at(r, j));
                                           const Vec<T> moved = du * along.t;
                                           loss[j] += moved * (c - beta.at(r, j)) - c * along.target, sum[j] += moved;
                                           inner[j] += rescaled ? b * moved : moved * (c + u) - u * along.target;
                                           if (rescaled && target)
                                             inner[j] += load(target + at) * (c - unit.at(r, j) * b);
                                         });
    const auto add = [](T* to, Vec<T> x) { store<T>(to, load(to) + x); };
    RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t lane = j * kLanes<T>;
      add(panel.loss + lane, loss[j]);
      if (p.form != Form::plain) add(panel.tangents.sum + lane, sum[j]), add(panel.tangents.beta + lane, inner[j]);
    }
  }
  template <class T>
  static void finish(const MatrixRegressionParameters& p, int64_t batch, int64_t first, int64_t count,
                     TangentPanel<T>& panel) {
    using Number = MatrixRegressionTangents;
    const OutputView out = matrix(p.tangents, p.scores, batch);
    for (int64_t x = 0; x < count; ++x) {
      const RowNumbers<T>& n = panel.numbers;
      const T half = p.form == Form::normalized ? T(1) : std::exp2(n.reference[x]);
      const T square = p.form == Form::normalized ? n.beta[x] + n.square[x] : n.square[x];
      T* to = static_cast<T*>(out.data) + (first + x) * out.row;
      to[Number::loss * out.column] = half * panel.loss[x] * half;
      to[Number::sum * out.column] = panel.tangents.sum[x];
      to[Number::beta * out.column] = panel.tangents.beta[x] - panel.tangents.sum[x] * square;
    }
  }
};

struct GradientTangent {
  template <class T>
  static void start(const MatrixRegressionParameters& p, int64_t batch, int64_t first, int64_t count,
                    TangentPanel<T>& panel) {
    const int64_t lanes = panel_lanes<T>(count);
    const InputView saved = matrix(p.saved_tangents, p.scores, batch);
    for (int64_t x = 0; x < lanes; ++x) set_saved_tangent<T>(saved, first + x, x < count, x, panel.tangents);
    std::memset(panel.output, 0, sizeof(T) * round_up(p.scores.head_size, kTileRows) * lanes);
  }
  template <class T, bool kTwoSided, int kVectors>
  static void block(const MatrixRegressionParameters& p, Block block, const BlockRows<T>& in, const T* mask,
                    TangentPanel<T>& panel, TangentScratch<T>& s) {
    const Each<T, Lanes::queries, kVectors> unit(panel.numbers.unit), beta(panel.numbers.beta),
        sum_tangent(panel.tangents.sum), beta_tangent(panel.tangents.beta);
    const T* const target = p.tangent_target ? s.tangent_target : nullptr;
    for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                         [&](int64_t at, int64_t r, int j, Vec<T> u, Vec<T> du, Vec<T> b, Vec<T> c) {
                                           const ElementTangents<T> along =
                                               load_tangents<T>(s.tangent_scores, target, at, unit.at(r, j));
                                           const Second<T> d = second<T>(p.form, u, du, b, along, sum_tangent.at(r, j));
                                           const Vec<T> left = c - beta.at(r, j);
                                           store<T>(s.scores + at, d.du * left + du * (d.c - beta_tangent.at(r, j)));
                                           store<T>(s.tangent_scores + at, du * left);
                                         });
    accumulate_values<T, kVectors>(block.rows, p.scores.value_size, in.value, s.scores, in.tangent_value,
                                   s.tangent_scores, nullptr, panel.output);
  }
  template <class T>
  static void finish(const MatrixRegressionParameters& p, int64_t batch, int64_t first, int64_t count,
                     TangentPanel<T>& panel) {
    unpack_transposed<T>(row_of(matrix(p.rows, p.scores, batch), first), count, p.scores.head_size, T(1), panel.output,
                         panel_lanes<T>(count));
  }
};

template <class Along>
struct TangentPass : RowTasks {
  template <class T>
  using Scratch = TangentScratch<T>;
  template <class T, bool kTwoSided>
  static void task(const MatrixRegressionParameters& p, int64_t task, TangentScratch<T>& s) {
    const int64_t batch = panel_task<T>(p.scores, task).batch, depth = p.scores.head_size;
    const TargetViews target(p, batch);
    const InputView saved = matrix(p.saved_statistics, p.scores, batch),
                    tangent_target = matrix(p.tangent_target, p.scores, batch);
    walk_panels<T>(
        p.scores, task, s,
        [&](const Problem& problem, int64_t, int i, int64_t first, int64_t count) {
          TangentPanel<T>& panel = s.panels[i];
          const int64_t lanes = panel_lanes<T>(count);
          const T scale = static_cast<T>(kLog2e);
          pack_transposed<T>(from_row(problem.query, first), count, depth, scale, panel.query, lanes);
          if (panel.tangent_query)
            pack_transposed<T>(from_row(problem.tangent_query, first), count, depth, scale, panel.tangent_query, lanes);
          start_teacher<T>(p, target, first, count, panel.teacher);
          for (int64_t x = 0; x < lanes; ++x) set_saved_row<T>(p.form, saved, first + x, x < count, x, panel.numbers);
          Along::template start<T>(p, batch, first, count, panel);
        },
        [&](const Problem& problem, const BlockRows<T>& in, int i, Block block, auto vectors) {
          constexpr int kVectors = decltype(vectors)::value;
          TangentPanel<T>& panel = s.panels[i];
          const T* mask = fetch_block<T, kVectors>(p, problem, target, block, in.key, panel.query, panel.teacher, s);
          product_sum<T, kVectors>(block.rows, depth, in.key, panel.tangent_query, in.tangent_key, panel.query,
                                   s.tangent_scores);
          fetch_tangent_target<T, Lanes::queries, kVectors>(tangent_target, block, mask, s.tangent_target);
          Along::template block<T, kTwoSided, kVectors>(p, block, in, mask, panel, s);
        },
        [&](int64_t, int i, int64_t first, int64_t count) {
          Along::template finish<T>(p, batch, first, count, s.panels[i]);
        });
  }
};

}  // namespace

MatrixRegressionProgram matrix_regression_tangents(const MatrixRegressionParameters& p) {
  return matrix_program<TangentPass<Tangents>>(p);
}
MatrixRegressionProgram matrix_regression_gradient_tangent(const MatrixRegressionParameters& p) {
  return matrix_program<TangentPass<GradientTangent>>(p);
}

}  // namespace rescaled::RESCALED_ISA
