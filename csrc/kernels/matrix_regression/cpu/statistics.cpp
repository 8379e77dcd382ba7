// SPDX-License-Identifier: BSD-3-Clause
// The numbers of the rows: one walk over the map for the reference and the sum of u, as attention's normalizer, and one
// for the residual, which is then exact however small it is.
#include "elements.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
struct StatisticsPanel {
  ForwardPanel<T> online;
  LaneNumbers<T> numbers;
  T* loss;
};
template <class T>
struct StatisticsScratch : MatrixScratch<T> {
  StatisticsPanel<T> panels[kPanelsPerTask];
  StatisticsScratch(const MatrixRegressionParameters& p, Arena& arena) : MatrixScratch<T>(p, arena) {
    for (StatisticsPanel<T>& panel : panels)
      panel = {take_panel<T>(p.scores, arena), take_numbers<T>(arena), arena.take<T>(kTileVectors * kLanes<T>)};
  }
};

// The plain form has b beside u: the reference must not be far below it. What is not finite needs none.
template <class T>
static void raise_reference(const MatrixRegressionParameters& p, InputView target, int64_t first, int64_t count,
                            ForwardPanel<T>& panel) {
  const T infinity = static_cast<T>(__builtin_inf());
  for (int64_t i = 0; i < count; ++i) {
    const T* b = static_cast<const T*>(target.data) + (first + i) * target.row;
    T largest = 0;
    for (int64_t j = 0; j < p.scores.keys; ++j, b += target.column) {
      const T size = std::abs(*b);
      largest = size > largest && size < infinity ? size : largest;
    }
    const T least = std::ceil(std::log2(largest));                                   // -inf for zeros
    if (!(least > panel.reference[i]) || panel.reference[i] == -infinity) continue;  // nothing there
    const T factor = std::exp2(panel.reference[i] - least);
    panel.normalizer[i] *= factor, panel.balance[i] *= factor, panel.reference[i] = least;
  }
}

template <class T, bool kTwoSided, int kVectors>
static void residual_block(const MatrixRegressionParameters& p, const Problem& problem, InputView target, Block block,
                           const BlockRows<T>& in, StatisticsPanel<T>& panel, const MatrixScratch<T>& s) {
  const T* mask = fetch_block<T, kVectors>(p.scores, problem, target, block, in.key, panel.online.query, s);
  const bool rescaled = p.form == Form::rescaled;
  Vec<T> loss[kVectors] = {}, beta[kVectors] = {}, square[kVectors] = {};
  for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                       [&](int64_t, int j, Vec<T> u, Vec<T>, Vec<T> b, Vec<T> c) {
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

template <class T>
RESCALED_INLINE T* sum_of(const MatrixRegressionParameters& p, const StatisticsPanel<T>& panel) {
  return p.scores.kind == Kind::sinh ? panel.online.balance : panel.online.normalizer;
}

struct Statistics {
  template <class T>
  using Scratch = StatisticsScratch<T>;
  template <class T, bool kTwoSided>
  static void task(const MatrixRegressionParameters& p, int64_t task, StatisticsScratch<T>& s) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    const InputView target = matrix(p.target, p.scores, panel_task<T>(p.scores, task).batch);
    walk_panels<T>(
        p.scores, task, s,
        [&](const Problem& problem, int64_t, int i, int64_t first, int64_t count) {
          start_panel<T>(p.scores, problem, first, count, s.panels[i].online);
        },
        [&](const Problem& problem, const BlockRows<T>& in, int i, Block block, auto vectors) {
          Vec<T> correction[decltype(vectors)::value];
          weigh_online<T, kTwoSided, decltype(vectors)::value>(p.scores, problem, block, in.key, s.panels[i].online,
                                                               s.scores, s.weights, correction);
        },
        [&](int64_t, int i, int64_t first, int64_t count) {
          StatisticsPanel<T>& panel = s.panels[i];
          if (p.form == Form::plain) raise_reference<T>(p, target, first, count, panel.online);
          T* sum = sum_of(p, panel);
          for (int64_t x = 0; x < lanes; ++x) {
            const T reference = panel.online.reference[x];
            const bool empty = reference == -static_cast<T>(__builtin_inf());
            if (empty) sum[x] = 1;
            set_lane<T>(p.form, empty ? T(0) : reference, sum[x], x, panel.numbers);
            panel.loss[x] = panel.numbers.beta[x] = panel.numbers.square[x] = 0;
          }
        });
    walk_panels<T>(
        p.scores, task, s, [](const Problem&, int64_t, int, int64_t, int64_t) {},
        [&](const Problem& problem, const BlockRows<T>& in, int i, Block block, auto vectors) {
          residual_block<T, kTwoSided, decltype(vectors)::value>(p, problem, target, block, in, s.panels[i], s);
        },
        [&](int64_t batch, int i, int64_t first, int64_t count) {
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
        });
  }
};

}  // namespace

MatrixRegressionProgram matrix_regression_statistics(const MatrixRegressionParameters& p) {
  return matrix_program<Statistics>(p);
}

}  // namespace rescaled::RESCALED_ISA
