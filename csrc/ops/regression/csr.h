// SPDX-License-Identifier: BSD-3-Clause
// The regression family of a sparse A by the kernels of a device: as the operators of these names, whose checks have
// passed.
#pragma once
#include "problem.h"

namespace rescaled::ops {

#define RESCALED_CSR_FUNCTIONS                                                                                     \
  static std::tuple<Tensor, Tensor> evaluate(const RegressionPoint&, const RegressionSettings&);                   \
  static Tensor product(const RegressionPoint&, const Tensor& v, const RegressionSettings&,                        \
                        c10::string_view curvature);                                                               \
  static Tensor matvec(const Design&, const Tensor& v);                                                            \
  static Tensor transposed(const Design&, const Tensor& weights, bool squared);                                    \
  static std::tuple<Tensor, Tensor, Tensor> curvature(const Design&, const Tensor& rows, const Tensor& statistics, \
                                                      c10::string_view curvature);

// Indices that lead outside are an error.
struct CsrCpu {
  RESCALED_CSR_FUNCTIONS
};
// Formulas where the kernels do not serve. Indices that lead outside are not followed; results are NaN.
struct CsrCuda {
  RESCALED_CSR_FUNCTIONS
};
#undef RESCALED_CSR_FUNCTIONS

}  // namespace rescaled::ops
