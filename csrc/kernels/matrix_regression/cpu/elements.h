// SPDX-License-Identifier: BSD-3-Clause
// What the passes of a matrix regression share: the elements u, u', c of a block of the map, recomputed from scores,
// target and the numbers of each row of the map. The lanes are those rows (queries) or columns (keys).
#pragma once
#include "../../attention/cpu/online.h"
#include "target.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Of each row of the map: c = u - unit b after u and u' are multiplied by `factor`; the gradient's elements are
// u' (c - beta).
template <class T>
struct RowNumbers {
  T *reference, *factor, *unit, *beta, *square;
};
template <class T>
RESCALED_INLINE RowNumbers<T> take_numbers(Arena& arena, int64_t rows = kTileVectors * kLanes<T>) {
  return {arena.take<T>(rows), arena.take<T>(rows), arena.take<T>(rows), arena.take<T>(rows), arena.take<T>(rows)};
}
template <class T>
RESCALED_INLINE void set_row(Form form, T reference, T sum, int64_t x, RowNumbers<T>& n) {
  n.reference[x] = reference;
  n.factor[x] = form == Form::normalized ? T(1) / sum : T(1);
  n.unit[x] = form == Form::normalized ? T(1) : form == Form::rescaled ? sum : exp2_vector<T>(broadcast(-reference))[0];
}
// Row `row` of saved statistics as number `x`; neutral ones where there is no such row.
template <class T>
RESCALED_INLINE void set_saved_row(Form form, InputView saved, int64_t row, bool inside, int64_t x, RowNumbers<T>& n) {
  using Number = MatrixRegressionStatistics;
  set_row<T>(form, inside ? at<T>(saved, row, Number::reference) : T(0), inside ? at<T>(saved, row, Number::sum) : T(1),
             x, n);
  n.beta[x] = inside ? at<T>(saved, row, Number::beta) : T(0);
  n.square[x] = inside ? at<T>(saved, row, Number::square) : T(0);
}

// A number of each row of the map: by vector of the lanes, or by row of a block where the lanes are columns.
template <class T, Lanes kSide, int kVectors>
class Each {
 public:
  explicit Each(const T* all) : all_(all) {
    if (kSide == Lanes::queries)
      RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) lanes_[j] = load(all + j * kLanes<T>);
  }
  Vec<T> at(int64_t row, int j) const { return kSide == Lanes::queries ? lanes_[j] : broadcast(all_[row]); }

 private:
  const T* all_;
  Vec<T> lanes_[kVectors];
};

// Blocks of scores, log weights and target, [kKeyBlock][lanes].
template <class T>
struct ElementBlocks {
  T *scores, *weights, *target;
  explicit ElementBlocks(Arena& arena) {
    constexpr int64_t size = kKeyBlock * kTileVectors * kLanes<T>;
    scores = arena.take<T>(size), weights = arena.take<T>(size), target = arena.take<T>(size);
  }
};
template <class T>
struct MatrixScratch : PanelScratch<T>, ElementBlocks<T> {
  T* teacher_keys;  // where they are not in place
  MatrixScratch(const MatrixRegressionParameters& p, Arena& arena)
      : PanelScratch<T>(p.scores, arena),
        ElementBlocks<T>(arena),
        teacher_keys(arena.take<T>(p.source == Target::teacher ? kKeyBlock * p.teacher_size : 0)) {}
};

// The mask of a block, where it has one: below 0 what takes no part.
template <class T, Lanes kSide, int kVectors>
RESCALED_INLINE const T* fetch_mask(const AttentionParameters& p, const Problem& problem, Block block, T* to) {
  const int64_t keys = kSide == Lanes::queries ? block.rows : block.lanes;
  if (!weighted(p, block.query, block.key + keys - 1)) return nullptr;
  fill_log_weights<T, kSide>(p, problem.bias, problem.mask, block, to, kVectors * kLanes<T>);
  return to;
}
// Scores and target of a block whose lanes are rows of the map, and the mask is returned.
template <class T, int kVectors>
static const T* fetch_block(const MatrixRegressionParameters& p, const Problem& problem, const TargetViews& target,
                            Block block, Rows<T> key, const T* query, const TeacherPanel<T>& teacher,
                            const MatrixScratch<T>& s) {
  product_block<T, kVectors>(block.rows, p.scores.head_size, false, key, query, s.scores);
  fetch_target<T, Lanes::queries, kVectors>(p, target, block, teacher_keys(p, target, block.key, s.teacher_keys),
                                            teacher, s.target);
  return fetch_mask<T, Lanes::queries, kVectors>(p.scores, problem, block, s.weights);
}

// 0 where the mask hides an element.
template <class T>
RESCALED_INLINE void hide(const T* mask, int64_t count, T* block) {
  const Vec<T> zero = {};
  for (int64_t at = 0; mask && at < count; at += kLanes<T>)
    store<T>(block + at, load(mask + at) < zero ? zero : load(block + at));
}

// visit(offset in the block, row, vector, u, u', b, c) for the elements of a block. May overwrite the scores it has
// seen.
template <class T, bool kTwoSided, int kVectors, Lanes kSide = Lanes::queries, class Visit>
RESCALED_INLINE void for_elements(bool sinh, int64_t rows, const T* mask, const ElementBlocks<T>& s,
                                  const RowNumbers<T>& n, Visit visit) {
  constexpr int64_t lanes = kVectors * kLanes<T>;
  const Each<T, kSide, kVectors> reference(n.reference), factor(n.factor), unit(n.unit);
  for (int64_t r = 0; r < rows; ++r) RESCALED_UNROLL for (int j = 0; j < kVectors; ++j) {
      const int64_t at = r * lanes + j * kLanes<T>;
      Vec<T> u, du, b = load(s.target + at);
      if constexpr (!kTwoSided) {
        u = du = exp2_vector<T>(load(s.scores + at) - reference.at(r, j));
      } else {
        Vec<T> even, odd;
        two_sided<T>(load(s.scores + at), -reference.at(r, j), even, odd);
        u = sinh ? odd : even, du = sinh ? even : odd;
      }
      if (mask) {
        const Vec<T> zero = {}, w = load(mask + at);
        u = w < zero ? zero : u, du = w < zero ? zero : du, b = w < zero ? zero : b;
      }
      u *= factor.at(r, j), du *= factor.at(r, j);
      visit(at, r, j, u, du, b, u - unit.at(r, j) * b);
    }
}

// A pass over the map; a Pass has Scratch<T> and, static, tasks<T>(p) and task<T, kTwoSided>(p, task, scratch).
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
  return {{{Pass::template tasks<T>(p), bytes_of<typename Pass::template Scratch<T>>(p), matrix_run<Pass, T>}}, 1, 0};
}
template <class Pass>
static MatrixRegressionProgram matrix_program(const MatrixRegressionParameters& p) {
  return p.scores.query.dtype == DType::float64 ? matrix_program_of<Pass, double>(p)
                                                : matrix_program_of<Pass, float>(p);
}

// The tasks of a pass whose lanes are rows of the map.
struct RowTasks {
  template <class T>
  static int64_t tasks(const MatrixRegressionParameters& p) {
    return panel_tasks<T>(p.scores);
  }
};

}  // namespace
}  // namespace rescaled::RESCALED_ISA
