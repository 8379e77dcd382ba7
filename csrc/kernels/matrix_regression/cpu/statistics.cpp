// SPDX-License-Identifier: BSD-3-Clause
// The numbers of the rows. One walk over the map, with the reference and the sum of u online, as attention's
// normalizer; the residual c = u - nu b is summed around a prediction of nu, so that it is exact however small it is.
// In the plain form, whose nu is a number but whose reference must know b, a second walk for the residual.
#include "elements.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Of each lane, for e = u - predicted b: sums of b^2, e b, e^2.
template <class T>
struct CenteredSums {
  T *predicted, *bb, *eb, *ee;
};
template <class T>
struct StatisticsPanel {
  ForwardPanel<T> online;
  RowNumbers<T> numbers;
  TeacherPanel<T> teacher;
  T* loss;
  CenteredSums<T> sums;
};
template <class T>
struct StatisticsScratch : MatrixScratch<T> {
  StatisticsPanel<T> panels[kPanelsPerTask];
  StatisticsScratch(const MatrixRegressionParameters& p, Arena& arena) : MatrixScratch<T>(p, arena) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    const auto take = [&] { return arena.take<T>(lanes); };
    for (StatisticsPanel<T>& panel : panels) {
      panel.online = take_panel<T>(p.scores, arena), panel.numbers = take_numbers<T>(arena), panel.loss = take();
      panel.teacher = take_teacher<T>(p, lanes, arena);
      panel.sums.predicted = take(), panel.sums.bb = take(), panel.sums.eb = take(), panel.sums.ee = take();
    }
  }
};

// The plain form has b beside u: the reference must not be far below it. What is not finite needs none.
template <class T>
static void raise_reference(const MatrixRegressionParameters& p, const TargetViews& target, int64_t first,
                            int64_t count, ForwardPanel<T>& panel) {
  const T infinity = static_cast<T>(__builtin_inf());
  for (int64_t i = 0; i < count; ++i) {
    const T least = std::ceil(std::log2(largest_of_row<T>(p, target, first + i)));   // -inf for zeros
    if (!(least > panel.reference[i]) || panel.reference[i] == -infinity) continue;  // nothing there
    const T factor = std::exp2(panel.reference[i] - least);
    panel.normalizer[i] *= factor, panel.balance[i] *= factor, panel.reference[i] = least;
  }
}

template <class T, bool kTwoSided, int kVectors>
static void residual_block(const MatrixRegressionParameters& p, const Problem& problem, const TargetViews& target,
                           Block block, const BlockRows<T>& in, StatisticsPanel<T>& panel, const MatrixScratch<T>& s) {
  const T* mask = fetch_block<T, kVectors>(p, problem, target, block, in.key, panel.online.query, panel.teacher, s);
  const bool rescaled = p.form == Form::rescaled;
  Vec<T> loss[kVectors] = {}, beta[kVectors] = {}, square[kVectors] = {};
  for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                       [&](int64_t, int64_t, int j, Vec<T> u, Vec<T>, Vec<T> b, Vec<T> c) {
                                         const Vec<T> other = rescaled ? b : u;
                                         loss[j] += c * c, beta[j] += other * c, square[j] += other * other;
                                       });
  const auto add = [](T* to, Vec<T> x) { store<T>(to, load(to) + x); };
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    const int64_t at = j * kLanes<T>;
    add(panel.loss + at, loss[j]);
    if (p.form != Form::plain) add(panel.numbers.beta + at, beta[j]), add(panel.numbers.square + at, square[j]);
  }
}

// Adds a block, whose u are in the scores, to the sums. The prediction is the fit of u by b in the block that had more
// of b^2 than all before it: near a solution u is close to nu b in any block, and in no other is predicted b larger
// than the u of that one. A new prediction carries the sums over.
template <class T, int kVectors>
static __attribute__((noinline)) void add_centered(int64_t rows, const T* mask, const T* u, T* target,
                                                   const Vec<T>* correction, CenteredSums<T>& sums) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  hide<T>(mask, rows * lanes, target);
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
    const int64_t lane = j * kLanes<T>;
    Vec<T> block_bb = {}, block_ub = {};
    for (int64_t at = lane; at < rows * lanes; at += lanes) {
      const Vec<T> b = load(target + at);
      block_bb += b * b, block_ub += load(u + at) * b;
    }
    const Vec<T> factor = correction[j], bb = load(sums.bb + lane);
    Vec<T> predicted = load(sums.predicted + lane) * factor, eb = load(sums.eb + lane) * factor,
           ee = load(sums.ee + lane) * factor * factor;
    const Vec<T> fit = block_bb > bb ? block_ub / block_bb : predicted, step = fit - predicted;
    ee = ee - step * (eb + eb - step * bb), eb = eb - step * bb;
    predicted = fit;
    Vec<T> block_eb = {}, block_ee = {};
    for (int64_t at = lane; at < rows * lanes; at += lanes) {
      const Vec<T> b = load(target + at), e = load(u + at) - predicted * b;
      block_eb += e * b, block_ee += e * e;
    }
    store<T>(sums.predicted + lane, predicted), store<T>(sums.bb + lane, bb + block_bb);
    store<T>(sums.eb + lane, eb + block_eb), store<T>(sums.ee + lane, ee + block_ee);
  }
}

// The numbers of a row from its sums, docs/math.md (11) for one row.
template <class T>
static void finish_centered(Form form, T sum, int64_t lane, StatisticsPanel<T>& panel) {
  const CenteredSums<T>& s = panel.sums;
  const T predicted = s.predicted[lane], bb = s.bb[lane], eb = s.eb[lane], ee = s.ee[lane], rest = sum - predicted;
  const T cc = ee - rest * (eb + eb - rest * bb), loss = cc < T(0) ? T(0) : cc;
  const bool rescaled = form == Form::rescaled;
  const T factor = rescaled ? T(1) : panel.numbers.factor[lane];
  panel.loss[lane] = loss * factor * factor;
  panel.numbers.beta[lane] =
      rescaled ? eb - rest * bb : (ee + (predicted - rest) * eb - predicted * rest * bb) * factor * factor;
  panel.numbers.square[lane] = rescaled ? bb : (ee + predicted * (eb + eb + predicted * bb)) * factor * factor;
}

template <class T>
RESCALED_INLINE T* sum_of(const MatrixRegressionParameters& p, const StatisticsPanel<T>& panel) {
  return p.scores.kind == Kind::sinh ? panel.online.balance : panel.online.normalizer;
}

struct Statistics : RowTasks {
  template <class T>
  using Scratch = StatisticsScratch<T>;
  template <class T, bool kTwoSided>
  static void task(const MatrixRegressionParameters& p, int64_t task, StatisticsScratch<T>& s) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    const TargetViews target(p, panel_task<T>(p.scores, task).batch);
    const auto store_numbers = [&](int64_t batch, int i, int64_t first, int64_t count) {
      using Number = MatrixRegressionStatistics;
      const StatisticsPanel<T>& panel = s.panels[i];
      const OutputView out = matrix(p.statistics, p.scores, batch);
      const T* sum = sum_of(p, panel);
      for (int64_t x = 0; x < count; ++x) {
        T* to = static_cast<T*>(out.data) + (first + x) * out.row;
        to[Number::reference * out.column] = panel.numbers.reference[x];
        to[Number::sum * out.column] = sum[x];
        to[Number::beta * out.column] = panel.numbers.beta[x];
        to[Number::square * out.column] = panel.numbers.square[x];
        to[Number::loss * out.column] = panel.loss[x] / 2;
      }
    };
    const bool twice = p.form == Form::plain || p.scores.kind == Kind::sinh;
    walk_panels<T>(
        p.scores, task, s,
        [&](const Problem& problem, int64_t, int i, int64_t first, int64_t count) {
          start_panel<T>(p.scores, problem, first, count, s.panels[i].online);
          start_teacher<T>(p, target, first, count, s.panels[i].teacher);
          CenteredSums<T>& sums = s.panels[i].sums;
          for (int64_t x = 0; x < lanes; ++x) sums.predicted[x] = sums.bb[x] = sums.eb[x] = sums.ee[x] = 0;
        },
        [&](const Problem& problem, const BlockRows<T>& in, int i, Block block, auto vectors) {
          constexpr int kVectors = decltype(vectors)::value;
          StatisticsPanel<T>& panel = s.panels[i];
          Vec<T> correction[kVectors];
          const bool masked = weigh_online<T, kTwoSided, kVectors>(p.scores, problem, block, in.key, panel.online,
                                                                   s.scores, s.weights, correction);
          if (twice) return;
          fetch_target<T, Lanes::queries, kVectors>(
              p, target, block, teacher_keys(p, target, block.key, s.teacher_keys), panel.teacher, s.target);
          add_centered<T, kVectors>(block.rows, masked ? s.weights : nullptr, s.scores, s.target, correction,
                                    panel.sums);
        },
        [&](int64_t batch, int i, int64_t first, int64_t count) {
          StatisticsPanel<T>& panel = s.panels[i];
          if (p.form == Form::plain) raise_reference<T>(p, target, first, count, panel.online);
          T* sum = sum_of(p, panel);
          for (int64_t x = 0; x < lanes; ++x) {
            const T reference = panel.online.reference[x];
            const bool empty = reference == -static_cast<T>(__builtin_inf());
            if (empty) sum[x] = 1;
            set_row<T>(p.form, empty ? T(0) : reference, sum[x], x, panel.numbers);
            panel.loss[x] = panel.numbers.beta[x] = panel.numbers.square[x] = 0;
            if (!twice && !empty) finish_centered<T>(p.form, sum[x], x, panel);
          }
          if (!twice) store_numbers(batch, i, first, count);
        });
    if (!twice) return;
    walk_panels<T>(
        p.scores, task, s, [](const Problem&, int64_t, int, int64_t, int64_t) {},
        [&](const Problem& problem, const BlockRows<T>& in, int i, Block block, auto vectors) {
          residual_block<T, kTwoSided, decltype(vectors)::value>(p, problem, target, block, in, s.panels[i], s);
        },
        store_numbers);
  }
};

}  // namespace

MatrixRegressionProgram matrix_regression_statistics(const MatrixRegressionParameters& p) {
  return matrix_program<Statistics>(p);
}

}  // namespace rescaled::RESCALED_ISA
