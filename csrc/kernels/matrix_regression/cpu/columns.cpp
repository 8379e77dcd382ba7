// SPDX-License-Identifier: BSD-3-Clause
// What belongs to columns of the map, lanes = columns (keys), whose blocks meet all rows. With a weight of each row:
//
//   columns    G^T Q, or along tangents dG^T Q + G^T dQ
//   elements   the gradient in the target, or its tangent
#include "tangents.h"

namespace rescaled::RESCALED_ISA {
namespace {

constexpr int64_t kRowBlock = kKeyBlock;

template <class T>
struct ColumnsPanel {
  T *key, *tangent_key, *output;  // [d][lanes]; no tangent: nullptr
  TeacherPanel<T> teacher;        // its numbers are those of all panels
};
template <class T>
struct ColumnsScratch : ElementBlocks<T>, TangentBlocks<T> {
  ColumnsPanel<T> panels[kPanelsPerTask];
  int64_t ld;
  T *query, *tangent_query, *teacher_query;  // [kRowBlock][ld], [kRowBlock][e]: of a block of rows, times log2(e)
  RowNumbers<T> numbers;
  RowTangents<T> tangents;
  T *half, *weight;  // what an element is multiplied by, in two factors: their product may overflow
  ColumnsScratch(const MatrixRegressionParameters& p, Arena& arena)
      : ElementBlocks<T>(arena), TangentBlocks<T>(p, arena), ld(round_up(p.scores.head_size, kTileRows)) {
    constexpr int64_t lanes = kTileVectors * kLanes<T>;
    const int64_t depth = p.scores.head_size;
    const bool teacher = p.source == Target::teacher;
    T *const reference = arena.take<T>(kRowBlock), *const inverse = arena.take<T>(kRowBlock);
    for (ColumnsPanel<T>& panel : panels) {
      panel.key = arena.take<T>(depth * lanes);
      panel.tangent_key = p.scores.tangent_key ? arena.take<T>(depth * lanes) : nullptr;
      panel.output = arena.take<T>(p.columns ? ld * lanes : 0);
      panel.teacher = {arena.take<T>(teacher ? p.teacher_size * lanes : 0), reference, inverse};
    }
    query = arena.take<T>(kRowBlock * ld);
    tangent_query = p.scores.tangent_query ? arena.take<T>(kRowBlock * ld) : nullptr;
    teacher_query = arena.take<T>(teacher ? kRowBlock * p.teacher_size : 0);
    numbers = take_numbers<T>(arena, kRowBlock), tangents = take_tangents<T>(arena, kRowBlock);
    half = arena.take<T>(kRowBlock), weight = arena.take<T>(kRowBlock);
  }
};

// The panels of a task share what is packed of the rows; where there are few, each is a task.
template <class T>
RESCALED_INLINE int64_t panels_per_task(const MatrixRegressionParameters& p) {
  return p.scores.kv_batches * panels_of<T>(p.scores.keys) < 16 * kPanelsPerTask ? 1 : kPanelsPerTask;
}
template <class T>
RESCALED_INLINE int64_t column_tasks(const MatrixRegressionParameters& p) {
  const int64_t each = panels_per_task<T>(p);
  return (panels_of<T>(p.scores.keys) + each - 1) / each;
}

template <class T>
static void start_panel(const MatrixRegressionParameters& p, const Problem& problem, const TargetViews& target,
                        int64_t first, int64_t count, ColumnsPanel<T>& panel) {
  const int64_t lanes = panel_lanes<T>(count), depth = p.scores.head_size;
  const auto pack = [&](InputView m, int64_t columns, T* to) {
    pack_transposed<T>(from_row(m, first), count, columns, T(1), to, lanes);
  };
  pack(problem.key, depth, panel.key);
  if (panel.tangent_key) pack(problem.tangent_key, depth, panel.tangent_key);
  if (p.source == Target::teacher) pack(target.columns, p.teacher_size, panel.teacher.factors);
  if (p.columns) std::memset(panel.output, 0, sizeof(T) * round_up(depth, kTileRows) * lanes);
}

// Rows [first, first + count) of the map: their queries and numbers.
template <class T>
static void start_rows(const MatrixRegressionParameters& p, const Problem& problem, const TargetViews& target,
                       int64_t batch, int64_t first, int64_t count, ColumnsScratch<T>& s) {
  const int64_t padded = round_up(count, kTileRows);
  const T scale = static_cast<T>(kLog2e);
  pack_rows<T>(from_row(problem.query, first), count, p.scores.head_size, scale, s.query, padded, s.ld);
  if (s.tangent_query)
    pack_rows<T>(from_row(problem.tangent_query, first), count, p.scores.head_size, scale, s.tangent_query, padded,
                 s.ld);
  if (p.source == Target::teacher) {
    pack_rows<T>(from_row(target.rows, first), count, p.teacher_size, scale, s.teacher_query, padded, p.teacher_size);
    set_teacher_rows<T>(target, first, count, count, s.panels[0].teacher);
  }
  const InputView saved = matrix(p.saved_statistics, p.scores, batch), weight = matrix(p.weight, p.scores, batch),
                  tangents = matrix(p.saved_tangents, p.scores, batch);
  for (int64_t x = 0; x < count; ++x) {
    set_saved_row<T>(p.form, saved, first + x, true, x, s.numbers);
    if (tangents) set_saved_tangent<T>(tangents, first + x, true, x, s.tangents);
    s.half[x] = p.form == Form::normalized ? T(1) : std::exp2(s.numbers.reference[x]);
    s.weight[x] = at<T>(weight, first + x, 0) * s.half[x];
  }
}

// Into the blocks of scores: G or its tangent, and G beside it in the tangents' block; or the target's.
template <class T, bool kTwoSided, bool kSecond, int kVectors>
static __attribute__((noinline)) void column_elements(const MatrixRegressionParameters& p, int64_t rows, const T* mask,
                                                      const ColumnsScratch<T>& s) {
  const Each<T, Lanes::keys, kVectors> unit(s.numbers.unit), beta(s.numbers.beta), half(s.half), weight(s.weight),
      sum_tangent(s.tangents.sum), beta_tangent(s.tangents.beta);
  const T* const tangent_target = kSecond && p.tangent_target ? s.tangent_target : nullptr;
  const bool of_target = static_cast<bool>(p.elements), rescaled = p.form == Form::rescaled;
  for_elements<T, kTwoSided, kVectors, Lanes::keys>(
      p.scores.kind == Kind::sinh, rows, mask, s, s.numbers,
      [&](int64_t at, int64_t r, int j, Vec<T> u, Vec<T> du, Vec<T> b, Vec<T> c) {
        const auto put = [&](T* to, Vec<T> x) { store<T>(to + at, x * half.at(r, j) * weight.at(r, j)); };
        const Vec<T> left = c - beta.at(r, j);
        if constexpr (!kSecond) {
          put(s.scores, of_target ? -unit.at(r, j) * c : du * left);
        } else {
          const Vec<T> sum = sum_tangent.at(r, j);
          const Second<T> d =
              second<T>(p.form, u, du, b, load_tangents<T>(s.tangent_scores, tangent_target, at, unit.at(r, j)), sum);
          if (of_target) {
            put(s.scores, -unit.at(r, j) * d.c - (rescaled ? sum * c : Vec<T>{}));
          } else {
            put(s.scores, d.du * left + du * (d.c - beta_tangent.at(r, j)));
            put(s.tangent_scores, du * left);
          }
        }
      });
}

template <bool kSecond>
struct Columns {
  template <class T>
  using Scratch = ColumnsScratch<T>;
  template <class T>
  static int64_t tasks(const MatrixRegressionParameters& p) {
    return p.scores.kv_batches * column_tasks<T>(p);
  }
  template <class T, bool kTwoSided>
  static void task(const MatrixRegressionParameters& p, int64_t task, ColumnsScratch<T>& s) {
    const AttentionParameters& scores = p.scores;
    const int64_t tasks = column_tasks<T>(p), batch = task / tasks, each = panels_per_task<T>(p);
    const Problem problem(scores, batch);
    const TargetViews target(p, batch);
    const InputView tangent_target = matrix(p.tangent_target, scores, batch);
    const OutputView columns = matrix(p.columns, scores, batch), elements = matrix(p.elements, scores, batch);
    const int64_t first_panel = task % tasks * each, left = panels_of<T>(scores.keys) - first_panel,
                  panels = left < each ? left : each;
    Span keys[kPanelsPerTask];
    for (int64_t i = 0; i < panels; ++i) {
      keys[i] = panel_span<T>(scores.keys, first_panel + i);
      start_panel<T>(p, problem, target, keys[i].first, keys[i].count, s.panels[i]);
    }
    const int64_t start = scores.causal ? keys[0].first / kRowBlock * kRowBlock : 0;  // earlier rows have none of these
    for (int64_t row = start; row < scores.queries; row += kRowBlock) {
      const int64_t rows = scores.queries - row < kRowBlock ? scores.queries - row : kRowBlock;
      start_rows<T>(p, problem, target, batch, row, rows, s);
      for (int64_t i = 0; i < panels; ++i) {
        const Block block{row, keys[i].first, rows, keys[i].count};
        if (scores.causal && row + rows <= block.key) continue;
        with_vectors<T>(block.lanes, [&](auto vectors) {
          constexpr int kVectors = decltype(vectors)::value;
          visit<T, kTwoSided, kVectors>(p, problem, target, tangent_target, elements, block, s.panels[i], s);
        });
      }
    }
    for (int64_t i = 0; columns && i < panels; ++i)
      unpack_transposed<T>(row_of(columns, keys[i].first), keys[i].count, scores.head_size, T(kLn2), s.panels[i].output,
                           panel_lanes<T>(keys[i].count));
  }

 private:
  template <class T, bool kTwoSided, int kVectors>
  static void visit(const MatrixRegressionParameters& p, const Problem& problem, const TargetViews& target,
                    InputView tangent_target, OutputView elements, Block block, ColumnsPanel<T>& panel,
                    ColumnsScratch<T>& s) {
    const int64_t depth = p.scores.head_size;
    const Rows<T> query{s.query, s.ld}, tangent_query{s.tangent_query, s.ld};
    product_block<T, kVectors>(block.rows, depth, false, query, panel.key, s.scores);
    fetch_target<T, Lanes::keys, kVectors>(p, target, block, {s.teacher_query, p.teacher_size}, panel.teacher,
                                           s.target);
    const T* mask = fetch_mask<T, Lanes::keys, kVectors>(p.scores, problem, block, s.weights);
    if (kSecond) {
      product_sum<T, kVectors>(block.rows, depth, tangent_query, panel.key, query, panel.tangent_key, s.tangent_scores);
      fetch_tangent_target<T, Lanes::keys, kVectors>(tangent_target, block, mask, s.tangent_target);
    }
    column_elements<T, kTwoSided, kSecond, kVectors>(p, block.rows, mask, s);
    if (!p.elements)
      return accumulate_values<T, kVectors>(block.rows, depth, query, s.scores,
                                            kSecond ? tangent_query : Rows<T>{nullptr, 0}, s.tangent_scores, nullptr,
                                            panel.output);
    for (int64_t r = 0; r < block.rows; ++r)
      for (int64_t x = 0; x < block.lanes; ++x)
        static_cast<T*>(elements.data)[(block.query + r) * elements.row + (block.key + x) * elements.column] =
            s.scores[r * kVectors * kLanes<T> + x];
  }
};

RESCALED_INLINE MatrixRegressionProgram columns_program(const MatrixRegressionParameters& p) {
  return p.saved_tangents ? matrix_program<Columns<true>>(p) : matrix_program<Columns<false>>(p);
}

}  // namespace

MatrixRegressionProgram matrix_regression_columns(const MatrixRegressionParameters& p) { return columns_program(p); }
MatrixRegressionProgram matrix_regression_elements(const MatrixRegressionParameters& p) { return columns_program(p); }

}  // namespace rescaled::RESCALED_ISA
