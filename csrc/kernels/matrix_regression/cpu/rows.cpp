// SPDX-License-Identifier: BSD-3-Clause
// The passes that end in rows of d numbers: an element-wise block g of the map, and g K.
//
//   gradient  g = u' (c - beta)
//   moments   p = u', q: what the Hessian diag(D) - p q^T - q p^T + square p p^T of a row has beside its diagonal
//   product   the Hessian times t = K y, whose sums <p, t>, <q, t> are <moment, y>: one walk
#include "elements.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
struct RowsPanel {
  T *query, *direction, *output, *others;  // [d][lanes]
  LaneNumbers<T> numbers;
  T *p_t, *rest_t;  // <p, t>, and <q, t> - square <p, t>
};
template <class T>
struct RowsScratch : MatrixScratch<T> {
  RowsPanel<T> panels[kPanelsPerTask];
  T* second;  // a second block, of moments and products
  RowsScratch(const MatrixRegressionParameters& p, Arena& arena) : MatrixScratch<T>(p, arena) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    const int64_t depth = p.scores.head_size, columns = round_up(depth, kTileRows);
    for (RowsPanel<T>& panel : panels) {
      panel.query = arena.take<T>(depth * lanes), panel.direction = arena.take<T>(p.direction ? depth * lanes : 0);
      panel.output = arena.take<T>(columns * lanes), panel.others = arena.take<T>(p.others ? columns * lanes : 0);
      panel.numbers = take_numbers<T>(arena);
      panel.p_t = arena.take<T>(lanes), panel.rest_t = arena.take<T>(lanes);
    }
    second = arena.take<T>(kKeyBlock * lanes);
  }
};

template <class T>
RESCALED_INLINE T at(InputView m, int64_t row, int64_t column) {
  return static_cast<const T*>(m.data)[row * m.row + column * m.column];
}
template <class T>
RESCALED_INLINE T dot(InputView a, InputView b, int64_t row, int64_t count) {
  T sum = 0;
  for (int64_t d = 0; d < count; ++d) sum += at<T>(a, row, d) * at<T>(b, row, d);
  return sum;
}

template <class T>
static void start_rows(const MatrixRegressionParameters& p, const Problem& problem, int64_t batch, int64_t first,
                       int64_t count, RowsPanel<T>& panel) {
  using Number = MatrixRegressionStatistics;
  const int64_t depth = p.scores.head_size, lanes = panel_lanes<T>(count);
  const int64_t bytes = static_cast<int64_t>(sizeof(T)) * round_up(depth, kTileRows) * lanes;
  pack_transposed<T>(from_row(problem.query, first), count, depth, static_cast<T>(kLog2e), panel.query, lanes);
  std::memset(panel.output, 0, bytes);
  if (p.others) std::memset(panel.others, 0, bytes);
  const InputView saved = matrix(p.saved_statistics, p.scores, batch), y = matrix(p.direction, p.scores, batch),
                  moment_p = matrix(p.moment_p, p.scores, batch), moment_q = matrix(p.moment_q, p.scores, batch);
  if (y) pack_transposed<T>(from_row(y, first), count, depth, T(1), panel.direction, lanes);
  for (int64_t x = 0; x < lanes; ++x) {
    const bool inside = x < count;
    const auto number = [&](int64_t n) { return inside ? at<T>(saved, first + x, n) : T(0); };
    set_lane<T>(p.form, number(Number::reference), inside ? number(Number::sum) : T(1), x, panel.numbers);
    panel.numbers.beta[x] = number(Number::beta);
    if (!y) continue;
    panel.p_t[x] = inside ? dot<T>(moment_p, y, first + x, depth) : T(0);
    panel.rest_t[x] = inside ? dot<T>(moment_q, y, first + x, depth) - number(Number::square) * panel.p_t[x] : T(0);
  }
}

template <class T, int kVectors>
RESCALED_INLINE void load_lanes(const T* from, Vec<T> (&to)[kVectors]) {
  RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) to[j] = load(from + j * kLanes<T>);
}

struct Gradient {
  template <class T, bool kTwoSided, int kVectors>
  static void block(const MatrixRegressionParameters& p, Block block, const BlockRows<T>& in, const T* mask,
                    RowsPanel<T>& panel, RowsScratch<T>& s) {
    Vec<T> beta[kVectors];
    load_lanes<T, kVectors>(panel.numbers.beta, beta);
    for_elements<T, kTwoSided, kVectors>(
        p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
        [&](int64_t at, int j, Vec<T>, Vec<T> du, Vec<T>, Vec<T> c) { store<T>(s.scores + at, du * (c - beta[j])); });
    accumulate_values<T, kVectors>(block.rows, p.scores.value_size, in.value, s.scores, {nullptr, 0}, nullptr, nullptr,
                                   panel.output);
  }
};

struct Moments {
  template <class T, bool kTwoSided, int kVectors>
  static void block(const MatrixRegressionParameters& p, Block block, const BlockRows<T>& in, const T* mask,
                    RowsPanel<T>& panel, RowsScratch<T>& s) {
    Vec<T> beta[kVectors];
    load_lanes<T, kVectors>(panel.numbers.beta, beta);
    const bool rescaled = p.form == Form::rescaled;
    const Vec<T> rest = broadcast(T(p.full)), one = broadcast(T(p.form != Form::plain));
    for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                         [&](int64_t at, int j, Vec<T> u, Vec<T> du, Vec<T> b, Vec<T> c) {
                                           const Vec<T> q = rescaled ? b : (u + rest * (c - beta[j])) * one;
                                           store<T>(s.scores + at, du), store<T>(s.second + at, du * q);
                                         });
    accumulate_values<T, kVectors>(block.rows, p.scores.value_size, in.value, s.scores, {nullptr, 0}, nullptr, nullptr,
                                   panel.output);
    accumulate_values<T, kVectors>(block.rows, p.scores.value_size, in.value, s.second, {nullptr, 0}, nullptr, nullptr,
                                   panel.others);
  }
};

struct Product {
  template <class T, bool kTwoSided, int kVectors>
  static void block(const MatrixRegressionParameters& p, Block block, const BlockRows<T>& in, const T* mask,
                    RowsPanel<T>& panel, RowsScratch<T>& s) {
    Vec<T> beta[kVectors], p_t[kVectors], rest_t[kVectors];
    load_lanes<T, kVectors>(panel.numbers.beta, beta);
    load_lanes<T, kVectors>(panel.p_t, p_t), load_lanes<T, kVectors>(panel.rest_t, rest_t);
    product_block<T, kVectors>(block.rows, p.scores.head_size, false, in.key, panel.direction, s.second);
    const bool rescaled = p.form == Form::rescaled;
    const Vec<T> rest = broadcast(T(p.full)), one = broadcast(T(p.form != Form::plain));
    for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                         [&](int64_t at, int j, Vec<T> u, Vec<T> du, Vec<T> b, Vec<T> c) {
                                           const Vec<T> left = rest * (c - beta[j]), t = load(s.second + at);
                                           const Vec<T> q = rescaled ? b : (u + left) * one;  // without the factor u'
                                           store<T>(s.scores + at,
                                                    u * left * t + du * (du * t - rest_t[j] - q * p_t[j]));
                                         });
    accumulate_values<T, kVectors>(block.rows, p.scores.value_size, in.value, s.scores, {nullptr, 0}, nullptr, nullptr,
                                   panel.output);
  }
};

template <class Block_>
struct Pass {
  template <class T>
  using Scratch = RowsScratch<T>;
  template <class T, bool kTwoSided>
  static void task(const MatrixRegressionParameters& p, int64_t task, RowsScratch<T>& s) {
    const InputView target = matrix(p.target, p.scores, panel_task<T>(p.scores, task).batch);
    walk_panels<T>(
        p.scores, task, s,
        [&](const Problem& problem, int64_t batch, int i, int64_t first, int64_t count) {
          start_rows<T>(p, problem, batch, first, count, s.panels[i]);
        },
        [&](const Problem& problem, const BlockRows<T>& in, int i, Block block, auto vectors) {
          constexpr int kVectors = decltype(vectors)::value;
          const T* mask = fetch_block<T, kVectors>(p.scores, problem, target, block, in.key, s.panels[i].query, s);
          Block_::template block<T, kTwoSided, kVectors>(p, block, in, mask, s.panels[i], s);
        },
        [&](int64_t batch, int i, int64_t first, int64_t count) {
          const int64_t lanes = panel_lanes<T>(count), columns = p.scores.head_size;
          unpack_transposed<T>(row_of(matrix(p.rows, p.scores, batch), first), count, columns, T(1), s.panels[i].output,
                               lanes);
          if (p.others)
            unpack_transposed<T>(row_of(matrix(p.others, p.scores, batch), first), count, columns, T(1),
                                 s.panels[i].others, lanes);
        });
  }
};

}  // namespace

MatrixRegressionProgram matrix_regression_gradient(const MatrixRegressionParameters& p) {
  return matrix_program<Pass<Gradient>>(p);
}
MatrixRegressionProgram matrix_regression_moments(const MatrixRegressionParameters& p) {
  return matrix_program<Pass<Moments>>(p);
}
MatrixRegressionProgram matrix_regression_product(const MatrixRegressionParameters& p) {
  return matrix_program<Pass<Product>>(p);
}

}  // namespace rescaled::RESCALED_ISA
