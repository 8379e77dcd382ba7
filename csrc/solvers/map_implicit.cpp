// SPDX-License-Identifier: BSD-3-Clause
#include "map_implicit.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>

#include <algorithm>

#include "conjugate_gradients.h"

namespace torch_rescaled::solvers {

using namespace rescaled::ops;

namespace {

constexpr int64_t kLeastProducts = 50;

// The gradient in the unknowns, as a function that can be differentiated on.
struct Recorded {
  variable_list inputs, unknowns, gradient;
  Recorded(const ImplicitProblem& problem, const std::vector<bool>& need) : unknowns(leaves(problem.unknowns)) {
    for (size_t i = 0; i < problem.inputs.size(); ++i) {  // what is not there is not needed
      const Tensor& t = problem.inputs[i];
      inputs.push_back(need[i] ? t.detach().requires_grad_() : t);
    }
    gradient = torch::autograd::grad({problem.loss(inputs, unknowns)}, unknowns, {}, /*retain_graph=*/true,
                                     /*create_graph=*/true);
  }
  static variable_list leaves(const variable_list& list) {
    variable_list out;
    for (const Tensor& t : list) out.push_back(t.detach().requires_grad_());
    return out;
  }
  variable_list hessian_product(const variable_list& v) const {
    return torch::autograd::grad(gradient, unknowns, v, /*retain_graph=*/true);
  }
};

// [problems, size] of tensors [*, ., .], float64 on the CPU; and back.
Tensor joined(const variable_list& list, int64_t problems) {
  std::vector<Tensor> parts;
  for (const Tensor& t : list) parts.push_back(wide(t).reshape({problems, -1}));
  return at::cat(parts, -1);
}
variable_list parted(const Tensor& v, const variable_list& like) {
  variable_list out;
  int64_t next = 0;
  for (const Tensor& t : like) {
    const int64_t size = v.size(0) == 0 ? 0 : t.numel() / v.size(0);
    out.push_back(v.slice(1, next, next + size).reshape(t.sizes()).to(t.options()));
    next += size;
  }
  return out;
}

// H^-1 v, each problem with lengths of its own.
Tensor inverse_hessian_times(const ImplicitProblem& problem, const Recorded& at_solution, const Tensor& v) {
  const Tensor point = joined(problem.unknowns, problem.problems);
  std::vector<Metric> metrics;
  for (int64_t i = 0; i < problem.problems; ++i) metrics.push_back(problem.metric(i, point[i]));
  const auto precondition = [&](const Tensor& r) {
    std::vector<Tensor> rows;
    for (int64_t i = 0; i < problem.problems; ++i)
      rows.push_back(metrics[static_cast<size_t>(i)].solve(r[i].contiguous(), 0));
    return at::stack(rows);
  };
  const auto product = [&](const Tensor& direction) {
    return joined(at_solution.hessian_product(parted(direction, problem.unknowns)), problem.problems);
  };
  const bool exact = problem.unknowns[0].scalar_type() == at::kDouble;
  return conjugate_gradients(product, precondition, v,
                             {exact ? 1e-12 : 1e-6, exact ? 1e-6 : 1e-3, std::max(kLeastProducts, 2 * v.size(1))});
}

}  // namespace

variable_list implicit_vjp(const ImplicitProblem& problem, const variable_list& v, const std::vector<bool>& need) {
  TORCH_CHECK_NOT_IMPLEMENTED(!at::GradMode::is_enabled(),
                              "torch_rescaled::solve: expected one derivative of the solution, got create_graph=True; "
                              "second derivatives of a solution do not exist yet");
  const at::AutoGradMode enable(true);
  const WithoutGlobalLock released;
  const Recorded at_solution(problem, need);
  const Tensor adjoint = inverse_hessian_times(problem, at_solution, joined(v, problem.problems));
  variable_list wanted, out(need.size());
  for (size_t i = 0; i < need.size(); ++i)
    if (need[i]) wanted.push_back(at_solution.inputs[i]);
  const variable_list found =
      torch::autograd::grad(at_solution.gradient, wanted, parted(-adjoint, problem.unknowns), /*retain_graph=*/false,
                            /*create_graph=*/false, /*allow_unused=*/true);
  for (size_t i = 0, next = 0; i < need.size(); ++i)
    if (need[i]) out[i] = found[next++];
  return out;
}

variable_list implicit_jvp(const ImplicitProblem& problem, const variable_list& tangents) {
  const at::AutoGradMode enable(true);
  const WithoutGlobalLock released;
  std::vector<bool> moves;
  for (const Tensor& t : tangents) moves.push_back(t.defined());
  const Recorded at_solution(problem, moves);
  // d gradient / d inputs times t is the gradient in the unknowns of <d loss / d inputs, t>.
  variable_list moving, along;
  for (size_t i = 0; i < tangents.size(); ++i)
    if (moves[i]) moving.push_back(at_solution.inputs[i]), along.push_back(tangents[i].detach());
  const variable_list slopes =
      torch::autograd::grad({problem.loss(at_solution.inputs, at_solution.unknowns)}, moving, {}, true, true);
  const variable_list moved = torch::autograd::grad(slopes, at_solution.unknowns, along);
  return parted(-inverse_hessian_times(problem, at_solution, joined(moved, problem.problems)), problem.unknowns);
}

void check_differentiable(const char* op, const variable_list& inputs, size_t count, bool grouped) {
  TORCH_CHECK_NOT_IMPLEMENTED(!grouped || !(any_requires_grad(inputs, count) || any_tangent(inputs, count)),
                              "torch_rescaled::", op,
                              ": expected tensors without derivatives with a group, got one with: a solution over a "
                              "group has no derivative yet");
}

variable_list map_unknowns(const Tensor& X, const Tensor& left, const Tensor& right, int64_t rank) {
  return rank == 0 ? variable_list{X.detach()} : variable_list{left.detach(), right.detach()};
}
Tensor map_of(const variable_list& unknowns, int64_t rank) {
  return rank == 0 ? unknowns[0] : at::matmul(unknowns[0], unknowns[1].mT());
}
variable_list map_cotangents(const variable_list& unknowns, const Tensor& X, int64_t rank) {
  if (rank == 0) return {X.defined() ? X : at::zeros_like(unknowns[0])};
  if (!X.defined()) return {at::zeros_like(unknowns[0]), at::zeros_like(unknowns[1])};
  return {at::matmul(X, unknowns[1]), at::matmul(X.mT(), unknowns[0])};
}
Tensor map_tangent(const variable_list& unknowns, const variable_list& tangents, int64_t rank) {
  if (rank == 0) return tangents[0];
  return at::matmul(tangents[0], unknowns[1].mT()) + at::matmul(unknowns[0], tangents[1].mT());
}
Tensor over_samples(Tensor t, int64_t sample_dims) {
  for (int64_t i = 0; i < sample_dims; ++i) t = t.unsqueeze(-3);
  return t;
}

}  // namespace torch_rescaled::solvers
