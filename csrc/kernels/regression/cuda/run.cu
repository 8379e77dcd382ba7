// SPDX-License-Identifier: BSD-3-Clause
// The passes as sequences of kernels on one stream.
#include "../../cuda/scalar.cuh"
#include "../sums.h"
#include "passes.cuh"
#include "regression.h"

namespace rescaled {
namespace {

// With the workspace's layout: `space` is empty.
PassPlan pass_plan(const RegressionParameters& p, RegressionPass pass, Space& space) {
  PassPlan plan;
  const bool product = pass == RegressionPass::product;
  with_element_type(p.A.dtype, [&](auto element) {
    plan.rows = row_plan<decltype(element)>(p);
    return nullptr;
  });
  const int64_t size = p.A.dtype == DType::float64 ? 8 : 4;
  plan.vectors = (product ? cuda::kVectorCount<cuda::Vectors::product>
                          : cuda::kVectorCount<cuda::Vectors::gradient>)+(p.penalty_weight ? 1 : 0);
  plan.given = plan.rows.column_chunks > 1, plan.keeps_logits = pass == RegressionPass::gauss_newton && !plan.given;
  for (int64_t count = plan.rows.chunks;; count = parts_of(count, kMostParts)) {
    Parts& level = plan.level[plan.levels++];
    level.count = count, level.sums = space.take(p.batches * count, sizeof(cuda::Sums));
    level.vectors = space.take(p.batches * count * plan.vectors * p.columns, plan.levels == 1 ? size : 8);
    if (plan.levels > 1 && count == 1) break;
  }
  if (plan.given || plan.keeps_logits) plan.logits = space.take(p.batches * p.rows, size);
  if (plan.given && product) plan.along = space.take(p.batches * p.rows, size);
  return plan;
}

struct Plans {
  Space space;
  PassPlan pass;
  GramPlan gram;
  Plans(RegressionPass which, const RegressionParameters& p) {
    const bool both = which == RegressionPass::gauss_newton;
    if (both || which == RegressionPass::evaluate || which == RegressionPass::product)
      pass = pass_plan(p, which, space);
    if (!both && which != RegressionPass::curvature) return;
    const auto plan = [&](auto element) {
      gram = gram_plan<decltype(element)>(p, space);
      return nullptr;
    };
    with_element_type(p.A.dtype, plan);
    gram.resident = !both;
    if (both) gram.diagonal = space.take(p.batches * p.rows, p.A.dtype == DType::float64 ? 8 : 4);
  }
};

const char* run_pass(const RegressionParameters& p, const PassPlan& plan, bool product, void* stream) {
  const char* error = nullptr;
  if (plan.given) error = regression_matvec(p, /*of_x=*/true, plan.logits, stream);
  if (error == nullptr && plan.given && product) error = regression_matvec(p, /*of_x=*/false, plan.along, stream);
  if (error == nullptr)
    error = product ? regression_product_pass(p, plan, stream) : regression_gradient_pass(p, plan, stream);
  return error != nullptr ? error : regression_join(p, plan, product, stream);
}

}  // namespace

int64_t regression_cuda_workspace_bytes(RegressionPass pass, const RegressionParameters& p) {
  switch (pass) {
    case RegressionPass::matvec:
    case RegressionPass::rows:
      return 0;
    case RegressionPass::statistics:
      return regression_statistics_bytes(p);
    case RegressionPass::model:
      return regression_model_bytes(p);
    default:
      return Plans(pass, p).space.bytes;
  }
}

const char* regression_cuda_run(RegressionPass pass, const RegressionParameters& p, void* stream) {
  switch (pass) {
    case RegressionPass::matvec:
      return regression_matvec(p, /*of_x=*/false, 0, stream);
    case RegressionPass::rows:
      return regression_rows(p, stream);
    case RegressionPass::statistics:
      return regression_statistics(p, stream);
    case RegressionPass::model:
      return regression_model(p, stream);
    default:
      break;
  }
  const Plans plans(pass, p);
  const char* error = nullptr;
  if (pass != RegressionPass::curvature) error = run_pass(p, plans.pass, pass == RegressionPass::product, stream);
  if (error == nullptr && (pass == RegressionPass::curvature || pass == RegressionPass::gauss_newton))
    error = regression_gram(p, plans.pass, plans.gram, stream);
  return error;
}

}  // namespace rescaled
