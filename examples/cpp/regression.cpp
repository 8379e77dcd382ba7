// SPDX-License-Identifier: BSD-3-Clause
// Softmax regression without Python: data from known coefficients, solved, and the solution's derivative in the data;
// then an attention map from known weights. Usage: regression
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch_rescaled/torch_rescaled.h>

#include <cstdio>

int main() {
  at::manual_seed(0);
  const at::Tensor A = at::randn({2000, 8}, at::kDouble), truth = at::randn({8}, at::kDouble);
  at::Tensor b = at::softmax(at::matmul(A, truth), 0);
  b.requires_grad_();

  const auto solution = torch_rescaled::solve_regression(A, b, {.form = "normalized"});
  const double error = (solution.x - truth).abs().max().item<double>();
  std::printf("status %d, %d reads of A, largest error %.1e\n", static_cast<int>(solution.status()),
              static_cast<int>(solution.number(torch_rescaled::SolveNumber::reads)), error);

  // b + e db is solved by x + e dx, with dx the derivative of the solution: here along d b / d truth[0].
  const at::Tensor dx = torch::autograd::grad({solution.x[0]}, {b})[0];
  const at::Tensor value = b.detach(), along = value * (A.select(1, 0) - at::dot(value, A.select(1, 0)));
  const double derivative = at::dot(dx, along).item<double>();
  std::printf("derivative of x[0] along truth[0]: %.9f\n", derivative);

  const at::Tensor A1 = at::randn({200, 4}, at::kDouble), A2 = at::randn({150, 4}, at::kDouble);
  const at::Tensor weights = at::randn({4, 4}, at::kDouble), logits = at::matmul(at::matmul(A1, weights), A2.mT());
  const auto map = torch_rescaled::solve_matrix_regression(A1, A2, at::softmax(logits, -1));
  const double map_error = (map.X - weights).abs().max().item<double>();
  std::printf("map: status %d, %d iterations, largest error %.1e\n", static_cast<int>(map.status()),
              static_cast<int>(map.number(torch_rescaled::MapSolveNumber::iterations)), map_error);
  return error < 1e-9 && std::abs(derivative - 1) < 1e-6 && map_error < 1e-9 ? 0 : 1;
}
