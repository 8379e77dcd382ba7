// SPDX-License-Identifier: BSD-3-Clause
// What a matrix regression's kernel is told: the losses of the rows of u(Q K^T) against those of a target
// (docs/math.md (12)). No torch, no Python.
#pragma once
#include "../attention/parameters.h"
#include "../regression/parameters.h"

namespace rescaled {

// Numbers of a row, in the type of the arithmetic: what a later pass needs to recompute any of its elements.
struct MatrixRegressionStatistics {
  enum : int64_t {
    reference,  // in octaves: the u of a row are 2^(log2(e) z - reference); loss, beta, square are of these
    sum,        // of u; 1 in a row without elements
    beta,       // the gradient's elements are du (c - beta)
    square,     // |b|^2 (rescaled), |f|^2 (normalized), 0 (plain)
    loss,       // 1/2 |c|^2
    count
  };
};
// The same of a row's tangent.
struct MatrixRegressionTangents {
  enum : int64_t {
    loss,  // of the loss as it is, not scaled
    sum,   // of the sum of u (rescaled), of its logarithm (normalized), 0 (plain)
    beta,
    count
  };
};

enum class MatrixPass { statistics, gradient, moments, product, tangents, gradient_tangent, columns, elements };

// Where the elements of the target come from. A teacher's are u(Q_t K_t^T) divided by their rows' sums.
enum class Target : int32_t { dense, teacher, sparse, zero };

// One struct for all kernels; each reads what it needs.
struct MatrixRegressionParameters {
  AttentionParameters scores;  // query, key as key and as value, their tangents, mask, causality, kind and the batch
  Form form = Form::rescaled;
  bool full = false;  // curvature: the Hessian, or Gauss-Newton

  Target source = Target::dense;
  Kind teacher_kind = Kind::exp;
  int64_t teacher_size = 0, stored = 0;  // e, nnz
  Input target;                          // dense: [., n1, n2]
  Input target_rows;                     // teacher: queries [., n1, e];  sparse: where rows begin [., n1 + 1] int64
  Input target_columns;  // teacher: keys [., n2, e];  sparse: columns [., nnz] int64, ascending in a row
  Input target_values;   // teacher: statistics of its rows [., n1, count];  sparse: values [., nnz]

  Input direction;           // [., n1, d]
  Input moment_p, moment_q;  // [., n1, d]: p K, q K
  Input saved_statistics;    // [., n1, count]
  Input tangent_target;      // [., n1, n2]
  Input saved_tangents;      // [., n1, MatrixRegressionTangents::count]; absent: the gradient itself
  Input weight;              // [., n1]: cotangents of the rows' losses

  Output statistics;    // [., n1, count]
  Output tangents;      // [., n1, MatrixRegressionTangents::count]
  Output rows, others;  // [., n1, d]: gradient, its tangent or Hessian product; or the two moments
  Output columns;       // [., n2, d]
  Output elements;      // [., n1, n2]: what no task writes must be 0

  void* workspace = nullptr;  // of no bytes
};
using MatrixRegressionProgram = Program<MatrixRegressionParameters>;

struct MatrixRegressionKernels {
  MatrixRegressionProgram (*statistics)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*gradient)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*moments)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*product)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*tangents)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*gradient_tangent)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*columns)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*elements)(const MatrixRegressionParameters&);
};
const MatrixRegressionKernels& matrix_regression_cpu_kernels();  // of this processor's instruction set (cpu/isa.h)

}  // namespace rescaled
