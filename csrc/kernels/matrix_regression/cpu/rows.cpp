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
  RowNumbers<T> numbers;
  TeacherPanel<T> teacher;
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
      panel.numbers = take_numbers<T>(arena), panel.teacher = take_teacher<T>(p, lanes, arena);
      panel.p_t = arena.take<T>(lanes), panel.rest_t = arena.take<T>(lanes);
    }
    second = arena.take<T>(kKeyBlock * lanes);
  }
};

template <class T>
RESCALED_INLINE T dot(InputView a, InputView b, int64_t row, int64_t count) {
  T sum = 0;
  for (int64_t d = 0; d < count; ++d) sum += at<T>(a, row, d) * at<T>(b, row, d);
  return sum;
}

template <class T>
static void start_rows(const MatrixRegressionParameters& p, const Problem& problem, const TargetViews& target,
                       int64_t batch, int64_t first, int64_t count, RowsPanel<T>& panel) {
  const int64_t depth = p.scores.head_size, lanes = panel_lanes<T>(count);
  const int64_t bytes = static_cast<int64_t>(sizeof(T)) * round_up(depth, kTileRows) * lanes;
  pack_transposed<T>(from_row(problem.query, first), count, depth, static_cast<T>(kLog2e), panel.query, lanes);
  std::memset(panel.output, 0, bytes);
  if (p.others) std::memset(panel.others, 0, bytes);
  const InputView saved = matrix(p.saved_statistics, p.scores, batch), y = matrix(p.direction, p.scores, batch),
                  moment_p = matrix(p.moment_p, p.scores, batch), moment_q = matrix(p.moment_q, p.scores, batch);
  if (y) pack_transposed<T>(from_row(y, first), count, depth, T(1), panel.direction, lanes);
  start_teacher<T>(p, target, first, count, panel.teacher);
  for (int64_t x = 0; x < lanes; ++x) {
    const bool inside = x < count;
    set_saved_row<T>(p.form, saved, first + x, inside, x, panel.numbers);
    if (!y) continue;
    panel.p_t[x] = inside ? dot<T>(moment_p, y, first + x, depth) : T(0);
    panel.rest_t[x] = inside ? dot<T>(moment_q, y, first + x, depth) - panel.numbers.square[x] * panel.p_t[x] : T(0);
  }
}

struct Gradient {
  template <class T, bool kTwoSided, int kVectors>
  static void block(const MatrixRegressionParameters& p, Block block, const BlockRows<T>& in, const T* mask,
                    RowsPanel<T>& panel, RowsScratch<T>& s) {
    const Each<T, Lanes::queries, kVectors> beta(panel.numbers.beta);
    for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                         [&](int64_t at, int64_t r, int j, Vec<T>, Vec<T> du, Vec<T>, Vec<T> c) {
                                           store<T>(s.scores + at, du * (c - beta.at(r, j)));
                                         });
    accumulate_values<T, kVectors>(block.rows, p.scores.value_size, in.value, s.scores, {nullptr, 0}, nullptr, nullptr,
                                   panel.output);
  }
};

struct Moments {
  template <class T, bool kTwoSided, int kVectors>
  static void block(const MatrixRegressionParameters& p, Block block, const BlockRows<T>& in, const T* mask,
                    RowsPanel<T>& panel, RowsScratch<T>& s) {
    const Each<T, Lanes::queries, kVectors> beta(panel.numbers.beta);
    const bool rescaled = p.form == Form::rescaled;
    const Vec<T> rest = broadcast(T(p.full)), one = broadcast(T(p.form != Form::plain));
    for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                         [&](int64_t at, int64_t r, int j, Vec<T> u, Vec<T> du, Vec<T> b, Vec<T> c) {
                                           const Vec<T> q = rescaled ? b : (u + rest * (c - beta.at(r, j))) * one;
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
    const Each<T, Lanes::queries, kVectors> beta(panel.numbers.beta), p_t(panel.p_t), rest_t(panel.rest_t);
    product_block<T, kVectors>(block.rows, p.scores.head_size, false, in.key, panel.direction, s.second);
    const bool rescaled = p.form == Form::rescaled;
    const Vec<T> rest = broadcast(T(p.full)), one = broadcast(T(p.form != Form::plain));
    for_elements<T, kTwoSided, kVectors>(p.scores.kind == Kind::sinh, block.rows, mask, s, panel.numbers,
                                         [&](int64_t at, int64_t r, int j, Vec<T> u, Vec<T> du, Vec<T> b, Vec<T> c) {
                                           const Vec<T> left = rest * (c - beta.at(r, j)), t = load(s.second + at);
                                           const Vec<T> q = rescaled ? b : (u + left) * one;  // without the factor u'
                                           store<T>(s.scores + at,
                                                    u * left * t + du * (du * t - rest_t.at(r, j) - q * p_t.at(r, j)));
                                         });
    accumulate_values<T, kVectors>(block.rows, p.scores.value_size, in.value, s.scores, {nullptr, 0}, nullptr, nullptr,
                                   panel.output);
  }
};

template <class Block_>
struct Pass : RowTasks {
  template <class T>
  using Scratch = RowsScratch<T>;
  template <class T, bool kTwoSided>
  static void task(const MatrixRegressionParameters& p, int64_t task, RowsScratch<T>& s) {
    const TargetViews target(p, panel_task<T>(p.scores, task).batch);
    walk_panels<T>(
        p.scores, task, s,
        [&](const Problem& problem, int64_t batch, int i, int64_t first, int64_t count) {
          start_rows<T>(p, problem, target, batch, first, count, s.panels[i]);
        },
        [&](const Problem& problem, const BlockRows<T>& in, int i, Block block, auto vectors) {
          constexpr int kVectors = decltype(vectors)::value;
          const T* mask =
              fetch_block<T, kVectors>(p, problem, target, block, in.key, s.panels[i].query, s.panels[i].teacher, s);
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
