// SPDX-License-Identifier: BSD-3-Clause
// What a regression kernel is told: min over x of the loss of u(A x) against b (docs/math.md (7)). No torch, no Python.
#pragma once
#include "../matrices.h"
#include "../program.h"

namespace rescaled {

enum class Form : int32_t { rescaled, normalized, plain };
enum class Curvature : int32_t { gauss_newton, clipped, full };

// Numbers of a point, float64: the loss is e^log_scale loss. log_scale: 2 shift, 0 in the normalized form.
struct RegressionStatistics {
  enum : int64_t {
    log_scale,
    loss,           // with the penalty
    penalty,        // its part of `loss`
    log_sum,        // log|sum u|
    sum_sign,       // of sum u: -1, 0, 1
    unit,           // u - unit b is the residual: scaled sum u, 1 (normalized), e^-shift (plain)
    beta,           // the gradient's rows are du (row_weight c - beta)
    square,         // |b|^2 (rescaled), |f|^2 (normalized), weighted by row_weight, or 0 (plain)
    magnitude,      // sum row_weight (u^2 + unit^2 b^2): what rounding errors of the loss are relative to
    spread,         // sum |u| / |sum u|: 1, or more where the u differ in sign
    concentration,  // sum row_weight u^2 / (sum u)^2: 1 over the number of rows that count
    largest,        // max |z|
    count
  };
};

// Vectors of a point, scaled as its loss is; `rest` is what the full Hessian has beyond Gauss-Newton:
// H = A^T (diag(D) - p q^T - q p^T + square p p^T) A.
struct RegressionRows {
  enum : int64_t {
    gradient,  // the gradient is A^T gradient; with the penalty
    diagonal,  // D of Gauss-Newton, with the penalty
    diagonal_rest,
    p,
    q,  // of Gauss-Newton
    q_rest,
    noise,  // (sum of the absolute values that `gradient` is computed from)^2
    count
  };
};

// Second-order model along a direction t of the logits, float64.
struct RegressionModel {
  enum : int64_t {
    slope,     // <gradient, t>
    diagonal,  // <t, D t>
    diagonal_rest,
    p,  // <p, t>
    q,
    q_rest,
    largest,  // max |t|
    count
  };
};

// One struct for all kernels; each reads what it needs.
struct RegressionParameters {
  Kind kind = Kind::exp;
  Form form = Form::rescaled;
  Curvature curvature = Curvature::gauss_newton;
  int64_t rows = 0, columns = 0, steps_count = 0;

  int rank = 0;  // leading dimensions
  int64_t sizes[kMaxBatchRank] = {};
  int64_t batches = 1;

  Input A;                                // [., n, d]
  Input b, row_weight, penalty_weight;    // [., n]
  Input x, v;                             // [., d]
  Input logits, direction, steps;         // [., n], [., n], [., K] float64
  Input saved_statistics, resident_rows;  // [., count] float64, [., count, n]

  Output statistics;                // [., K, count] or [., count], float64
  Output vector;                    // [., d] float64: gradient or Hessian product, scaled as the loss is
  Output products;                  // [., n]: A v
  Output row_values;                // [., count, n]
  Output model;                     // [., count] float64
  Output gradient, hessian, noise;  // [., d], [., d, d], [., d]

  void* workspace = nullptr;  // Program::workspace_bytes
};
using RegressionProgram = Program<RegressionParameters>;

struct RegressionKernels {
  RegressionProgram (*evaluate)(const RegressionParameters&);      // statistics and gradient at x, one read of A
  RegressionProgram (*gauss_newton)(const RegressionParameters&);  // the same and the Hessian, without a penalty
  RegressionProgram (*product)(const RegressionParameters&);  // Hessian (gauss_newton, full) times v, one read of A
  RegressionProgram (*matvec)(const RegressionParameters&);   // A v
  RegressionProgram (*statistics)(const RegressionParameters&);
  RegressionProgram (*rows)(const RegressionParameters&);
  RegressionProgram (*model)(const RegressionParameters&);
  RegressionProgram (*curvature)(const RegressionParameters&);  // gradient, Hessian, noise of resident rows
};
const RegressionKernels& regression_cpu_kernels();  // of this processor's instruction set (cpu/isa.h)

}  // namespace rescaled
