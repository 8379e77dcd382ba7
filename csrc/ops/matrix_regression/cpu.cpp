// SPDX-License-Identifier: BSD-3-Clause
// Matrix regression kernels on CPU.
#include <torch/library.h>

#include "../check.h"
#include "../threads.h"
#include "fused.h"

namespace rescaled::ops {
namespace {

// Once, where the statistics of a point are made; the kernels read no memory beyond what is stored whatever the
// indices are.
void check_indices(const MatrixRegressionParameters& p, int64_t batch) {
  const auto view = [&](const Input& m) { return matrix(m, p.scores, batch); };
  const auto crow = view(p.target_rows), columns = view(p.target_columns);
  const auto index = [](const InputView& m, int64_t i) { return static_cast<const int64_t*>(m.data)[i * m.row]; };
  const int64_t n1 = p.scores.queries, n2 = p.scores.keys;
  const char* op = "_matrix_regression_statistics";
  RESCALED_CHECK(VALUE, index(crow, 0) == 0 && index(crow, n1) == p.stored, op, "crow_indices from 0 to ", p.stored,
                 ", the number of values, got ", index(crow, 0), " to ", index(crow, n1));
  for (int64_t i = 0; i < n1; ++i) {
    const int64_t begin = index(crow, i), end = index(crow, i + 1);
    RESCALED_CHECK(VALUE, begin <= end && end <= p.stored, op, "crow_indices that never decrease, got ", begin,
                   " and then ", end);
    int64_t last = -1;
    for (int64_t x = begin; x < end; ++x) {
      const int64_t column = index(columns, x);
      RESCALED_CHECK(VALUE, column > last && column < n2, op,
                     "col_indices of a row ascending, none twice, within 0 to ", n2 - 1, ", got ", column, " in row ",
                     i);
      last = column;
    }
  }
}

using Kernel = MatrixRegressionProgram (*)(const MatrixRegressionParameters&);
Kernel kernel_of(MatrixPass pass) {
  const MatrixRegressionKernels& kernels = matrix_regression_cpu_kernels();
  switch (pass) {
    case MatrixPass::statistics:
      return kernels.statistics;
    case MatrixPass::gradient:
      return kernels.gradient;
    case MatrixPass::moments:
      return kernels.moments;
    case MatrixPass::product:
      return kernels.product;
    case MatrixPass::tangents:
      return kernels.tangents;
    case MatrixPass::gradient_tangent:
      return kernels.gradient_tangent;
    case MatrixPass::columns:
      return kernels.columns;
    default:
      return kernels.elements;
  }
}

struct Cpu {
  static bool serves(const MatrixPoint&) { return true; }
  static void run(const char*, MatrixPass pass, MatrixRegressionParameters& p, const Tensor&) {
    if (pass == MatrixPass::statistics && p.source == Target::sparse)
      for (int64_t b = 0; b < p.scores.kv_batches; ++b) check_indices(p, b);
    execute(kernel_of(pass)(p), p);
  }
};

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) { rescaled::ops::register_matrix_passes<rescaled::ops::Cpu>(m); }
