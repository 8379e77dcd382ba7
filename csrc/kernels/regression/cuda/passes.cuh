// SPDX-License-Identifier: BSD-3-Clause
// The steps of the passes on the host, put together by run.cu. Each enqueues kernels and returns the name of an error,
// or nullptr.
#pragma once
#include "../../cuda/device.cuh"
#include "../../cuda/element_type.h"
#include "gram_plan.h"
#include "plan.h"

namespace rescaled {

const char* regression_gradient_pass(const RegressionParameters&, const PassPlan&, void* stream);
const char* regression_product_pass(const RegressionParameters&, const PassPlan&, void* stream);
// Joins the parts, and writes what the pass is for.
const char* regression_join(const RegressionParameters&, const PassPlan&, bool product, void* stream);
// A v, to `products` or, where that is absent, to [batches][rows] at an offset of the workspace; of p.x instead of p.v
// with `of_x`.
const char* regression_matvec(const RegressionParameters&, bool of_x, int64_t offset, void* stream);

int64_t regression_statistics_bytes(const RegressionParameters&);
const char* regression_statistics(const RegressionParameters&, void* stream);
const char* regression_rows(const RegressionParameters&, void* stream);
int64_t regression_model_bytes(const RegressionParameters&);
const char* regression_model(const RegressionParameters&, void* stream);

// The Hessian, with the gradient and noise of resident rows; or beside a pass that kept its logits.
const char* regression_gram(const RegressionParameters&, const PassPlan&, const GramPlan&, void* stream);

}  // namespace rescaled
