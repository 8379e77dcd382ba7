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

// One struct for all kernels; each reads what it needs.
struct MatrixRegressionParameters {
  AttentionParameters scores;  // query, key as key and as value, mask, causality, kind and the batch
  Form form = Form::rescaled;
  bool full = false;  // curvature: the Hessian, or Gauss-Newton

  Input target;              // [., n1, n2]
  Input direction;           // [., n1, d]
  Input moment_p, moment_q;  // [., n1, d]: p K, q K
  Input saved_statistics;    // [., n1, count]

  Output statistics;    // [., n1, count]
  Output rows, others;  // [., n1, d]: gradient or Hessian product; or the two moments

  void* workspace = nullptr;  // of no bytes
};
using MatrixRegressionProgram = Program<MatrixRegressionParameters>;

struct MatrixRegressionKernels {
  MatrixRegressionProgram (*statistics)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*gradient)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*moments)(const MatrixRegressionParameters&);
  MatrixRegressionProgram (*product)(const MatrixRegressionParameters&);
};
const MatrixRegressionKernels& matrix_regression_cpu_kernels();  // of this processor's instruction set (cpu/isa.h)

}  // namespace rescaled
