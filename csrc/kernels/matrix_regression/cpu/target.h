// SPDX-License-Identifier: BSD-3-Clause
// Blocks of the target, dense or made where they are needed: from a teacher's queries and keys, one more product of a
// block, or from the components of a sparse one.
#pragma once
#include "../../attention/cpu/panel.h"
#include "../parameters.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
RESCALED_INLINE T at(InputView m, int64_t row, int64_t column) {
  return static_cast<const T*>(m.data)[row * m.row + column * m.column];
}

RESCALED_INLINE InputView from(InputView m, int64_t row, int64_t column) {
  m.data = static_cast<const char*>(m.data) + (row * m.row + column * m.column) * element_size(m.dtype);
  return m;
}

// The target of one problem of the batch.
struct TargetViews {
  InputView dense, rows, columns, values;
  TargetViews(const MatrixRegressionParameters& p, int64_t batch)
      : dense(matrix(p.target, p.scores, batch)),
        rows(matrix(p.target_rows, p.scores, batch)),
        columns(matrix(p.target_columns, p.scores, batch)),
        values(matrix(p.target_values, p.scores, batch)) {}
};

// A teacher's side of a block: factors of the lanes, and for each row of the map what makes an element of its score.
template <class T>
struct TeacherPanel {
  T *factors, *reference, *inverse;  // [e][lanes]; [rows of the map] twice, inverse: of the sum of u
};
template <class T>
RESCALED_INLINE TeacherPanel<T> take_teacher(const MatrixRegressionParameters& p, int64_t map_rows, Arena& arena) {
  constexpr int64_t lanes = kTileVectors * kLanes<T>;
  const bool there = p.source == Target::teacher;
  return {arena.take<T>(there ? p.teacher_size * lanes : 0), arena.take<T>(there ? map_rows : 0),
          arena.take<T>(there ? map_rows : 0)};
}
// The numbers of rows [first, first + count), and neutral ones up to `padded`.
template <class T>
static void set_teacher_rows(const TargetViews& target, int64_t first, int64_t count, int64_t padded,
                             const TeacherPanel<T>& panel) {
  using Number = MatrixRegressionStatistics;
  for (int64_t x = 0; x < padded; ++x) {
    panel.reference[x] = x < count ? at<T>(target.values, first + x, Number::reference) : T(0);
    panel.inverse[x] = x < count ? T(1) / at<T>(target.values, first + x, Number::sum) : T(1);
  }
}

// Where lanes are queries.
template <class T>
static void start_teacher(const MatrixRegressionParameters& p, const TargetViews& target, int64_t first, int64_t count,
                          const TeacherPanel<T>& panel) {
  if (p.source != Target::teacher) return;
  const int64_t lanes = panel_lanes<T>(count);
  pack_transposed<T>(from_row(target.rows, first), count, p.teacher_size, static_cast<T>(kLog2e), panel.factors, lanes);
  set_teacher_rows<T>(target, first, count, lanes, panel);
}

// Scores of a teacher become elements.
template <class T, bool kTwoSided, Lanes kSide, int kVectors>
static __attribute__((noinline)) void teach(bool sinh, int64_t rows, const TeacherPanel<T>& panel, T* block) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  Vec<T> reference[kVectors], inverse[kVectors];
  const auto set = [&](int64_t row) {
    RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t lane = j * kLanes<T>;
      reference[j] = kSide == Lanes::queries ? load(panel.reference + lane) : broadcast(panel.reference[row]);
      inverse[j] = kSide == Lanes::queries ? load(panel.inverse + lane) : broadcast(panel.inverse[row]);
    }
  };
  if (kSide == Lanes::queries) set(0);
  for (int64_t r = 0; r < rows; ++r) {
    if (kSide == Lanes::keys) set(r);
    RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      T* const to = block + r * lanes + j * kLanes<T>;
      if constexpr (!kTwoSided) {
        store<T>(to, exp2_vector<T>(load(to) - reference[j]) * inverse[j]);
      } else {
        Vec<T> even, odd;
        two_sided<T>(load(to), -reference[j], even, odd);
        store<T>(to, (sinh ? odd : even) * inverse[j]);
      }
    }
  }
}

// The first of a row's components [begin, end) whose column is at least `column`.
RESCALED_INLINE int64_t first_at_least(InputView columns, int64_t begin, int64_t end, int64_t column) {
  while (begin < end) {
    const int64_t middle = begin + (end - begin) / 2;
    if (at<int64_t>(columns, middle, 0) < column)
      begin = middle + 1;
    else
      end = middle;
  }
  return begin;
}
// Of a row: its components, whatever the indices say inside of what is stored.
struct Components {
  int64_t begin, end;
};
RESCALED_INLINE Components components(const MatrixRegressionParameters& p, const TargetViews& target, int64_t row) {
  const auto inside = [&](int64_t x) { return x < 0 ? 0 : x < p.stored ? x : p.stored; };
  return {inside(at<int64_t>(target.rows, row, 0)), inside(at<int64_t>(target.rows, row + 1, 0))};
}
template <class T, Lanes kSide>
static void scatter(const MatrixRegressionParameters& p, const TargetViews& target, Block block, T* to, int64_t lanes) {
  std::memset(to, 0, sizeof(T) * block.rows * lanes);
  const bool lanes_are_rows = kSide == Lanes::queries;
  const int64_t rows = lanes_are_rows ? block.lanes : block.rows, columns = lanes_are_rows ? block.rows : block.lanes;
  for (int64_t i = 0; i < rows; ++i) {
    const Components c = components(p, target, block.query + i);
    for (int64_t x = first_at_least(target.columns, c.begin, c.end, block.key); x < c.end; ++x) {
      const int64_t j = at<int64_t>(target.columns, x, 0) - block.key;
      if (j < 0 || j >= columns) break;
      to[lanes_are_rows ? j * lanes + i : i * lanes + j] = at<T>(target.values, x, 0);
    }
  }
}

// The rows that a teacher's lanes are multiplied by where lanes are queries: its keys of a block, whole blocks of them,
// since panels see different numbers of rows.
template <class T>
RESCALED_INLINE Rows<T> teacher_keys(const MatrixRegressionParameters& p, const TargetViews& target, int64_t key,
                                     T* scratch) {
  if (p.source != Target::teacher) return {nullptr, 0};
  const int64_t left = p.scores.keys - key, rows = left < kKeyBlock ? left : kKeyBlock;
  return rows_of<T>(from_row(target.columns, key), rows, p.teacher_size, kTileRows, 1, scratch);
}

template <class T, Lanes kSide>
RESCALED_INLINE void fetch_dense(InputView m, Block block, T* to, int64_t lanes) {
  const InputView first = from(m, block.query, block.key);
  if (kSide == Lanes::queries)
    pack_transposed<T>(first, block.lanes, block.rows, T(1), to, lanes);
  else
    pack_rows<T>(first, block.rows, block.lanes, T(1), to, block.rows, lanes);
}

// A block of the target, [rows][lanes].
template <class T, Lanes kSide, int kVectors>
static void fetch_target(const MatrixRegressionParameters& p, const TargetViews& target, Block block,
                         Rows<T> teacher_rows, const TeacherPanel<T>& teacher, T* to) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  switch (p.source) {
    case Target::dense:
      return fetch_dense<T, kSide>(target.dense, block, to, lanes);
    case Target::teacher:
      product_block<T, kVectors>(block.rows, p.teacher_size, false, teacher_rows, teacher.factors, to);
      if (p.teacher_kind == Kind::exp) return teach<T, false, kSide, kVectors>(false, block.rows, teacher, to);
      return teach<T, true, kSide, kVectors>(p.teacher_kind == Kind::sinh, block.rows, teacher, to);
    case Target::sparse:
      return scatter<T, kSide>(p, target, block, to, lanes);
    case Target::zero:
      std::memset(to, 0, sizeof(T) * block.rows * lanes);
  }
}

// A bound of a row's elements that are finite.
template <class T>
static T largest_of_row(const MatrixRegressionParameters& p, const TargetViews& target, int64_t row) {
  const T infinity = static_cast<T>(__builtin_inf());
  T largest = 0;
  const auto see = [&](T b) {
    const T size = std::abs(b);
    largest = size > largest && size < infinity ? size : largest;
  };
  if (p.source == Target::dense)
    for (int64_t j = 0; j < p.scores.keys; ++j) see(at<T>(target.dense, row, j));
  if (p.source == Target::teacher)  // its u are at most 1 against the reference
    see(T(1) / at<T>(target.values, row, MatrixRegressionStatistics::sum));
  if (p.source == Target::sparse) {
    const Components c = components(p, target, row);
    for (int64_t x = c.begin; x < c.end; ++x) see(at<T>(target.values, x, 0));
  }
  return largest;
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
