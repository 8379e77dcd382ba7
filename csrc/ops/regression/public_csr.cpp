// SPDX-License-Identifier: BSD-3-Clause
// The public regression operators of a sparse A, given by its components.
#include <torch/library.h>

#include "../in_float.h"
#include "public.h"

namespace rescaled::ops {
namespace {

// The components of a sparse A, in the place of A.
#define RESCALED_CSR                                                                                                   \
  const Tensor &crow_indices, const Tensor &col_indices, const Tensor &values, c10::SymInt n_columns, const Tensor &b, \
      const Tensor &x, const MaybeTensor &row_weight, const MaybeTensor &penalty_weight
#define RESCALED_CSR_AND_VECTOR                                                                                        \
  const Tensor &crow_indices, const Tensor &col_indices, const Tensor &values, c10::SymInt n_columns, const Tensor &b, \
      const Tensor &x, const Tensor &v, const MaybeTensor &row_weight, const MaybeTensor &penalty_weight
#define RESCALED_THE_CSR                                                                                       \
  RegressionPoint {                                                                                            \
    values, b, x, defined_or(row_weight), defined_or(penalty_weight), { crow_indices, col_indices, n_columns } \
  }
using LossSignature = Tensor(RESCALED_CSR, RESCALED_REGRESSION_SETTINGS);
using EvaluateSignature = Four(RESCALED_CSR, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature);
using HvpSignature = Tensor(RESCALED_CSR_AND_VECTOR, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature);

Tensor regression_loss_csr(RESCALED_CSR, RESCALED_REGRESSION_SETTINGS) {
  return public_loss("regression_loss_csr", RESCALED_THE_CSR, RESCALED_THE_REGRESSION_SETTINGS);
}
Four regression_evaluate_csr(RESCALED_CSR, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature) {
  return public_evaluate("regression_evaluate_csr", RESCALED_THE_CSR, RESCALED_THE_REGRESSION_SETTINGS, curvature);
}
Tensor regression_hvp_csr(RESCALED_CSR_AND_VECTOR, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature) {
  return public_hvp("regression_hvp_csr", RESCALED_THE_CSR, v, RESCALED_THE_REGRESSION_SETTINGS, curvature);
}

// The values are read as they are: autocast must not round them either.
template <c10::DispatchKey kKey>
Tensor loss_autocast(RESCALED_CSR, RESCALED_REGRESSION_SETTINGS) {
  const InFloat<kKey> cast;
  return handle<LossSignature>("torch_rescaled::regression_loss_csr")
      .call(crow_indices, col_indices, values, n_columns, cast(b), cast(x), cast(row_weight), cast(penalty_weight),
            kind, form);
}
template <c10::DispatchKey kKey>
Four evaluate_autocast(RESCALED_CSR, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature) {
  const InFloat<kKey> cast;
  return handle<EvaluateSignature>("torch_rescaled::regression_evaluate_csr")
      .call(crow_indices, col_indices, values, n_columns, cast(b), cast(x), cast(row_weight), cast(penalty_weight),
            kind, form, curvature);
}
template <c10::DispatchKey kKey>
Tensor hvp_autocast(RESCALED_CSR_AND_VECTOR, RESCALED_REGRESSION_SETTINGS, c10::string_view curvature) {
  const InFloat<kKey> cast;
  return handle<HvpSignature>("torch_rescaled::regression_hvp_csr")
      .call(crow_indices, col_indices, values, n_columns, cast(b), cast(x), cast(v), cast(row_weight),
            cast(penalty_weight), kind, form, curvature);
}

template <c10::DispatchKey kKey>
void register_autocast(torch::Library& m) {
  m.impl("regression_loss_csr", TORCH_FN(loss_autocast<kKey>));
  m.impl("regression_evaluate_csr", TORCH_FN(evaluate_autocast<kKey>));
  m.impl("regression_hvp_csr", TORCH_FN(hvp_autocast<kKey>));
}
void register_public(torch::Library& m) {
  m.impl("regression_loss_csr", TORCH_FN(regression_loss_csr));
  m.impl("regression_evaluate_csr", TORCH_FN(regression_evaluate_csr));
  m.impl("regression_hvp_csr", TORCH_FN(regression_hvp_csr));
}

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeImplicitAutograd, m) { rescaled::ops::register_public(m); }
TORCH_LIBRARY_IMPL(torch_rescaled, FuncTorchBatched, m) { rescaled::ops::register_public(m); }
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCPU, m) {
  rescaled::ops::register_autocast<c10::DispatchKey::AutocastCPU>(m);
}
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCUDA, m) {
  rescaled::ops::register_autocast<c10::DispatchKey::AutocastCUDA>(m);
}
