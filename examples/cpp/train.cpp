// SPDX-License-Identifier: BSD-3-Clause
// Trains a small model in C++ alone, on its loss plus a gradient penalty: the penalty is a function of the gradient of
// the outputs, so that every step runs the double backward of attention. Usage: train [STEPS [PENALTY]]
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/nn/module.h>
#include <torch/nn/modules/linear.h>
#include <torch/optim/adam.h>
#include <torch_rescaled/torch_rescaled.h>

#include <cstdio>
#include <cstdlib>

namespace {

using torch::Tensor;

// Attention with signed weights, between projections.
struct Model : torch::nn::Module {
  Model(int64_t features, int64_t heads) : heads(heads) {
    for (auto [name, layer] : {std::pair{"query", &query}, {"key", &key}, {"value", &value}, {"output", &output}})
      *layer = register_module(name, torch::nn::Linear(features, features));
  }

  // [B, N, features] -> the same
  Tensor forward(const Tensor& input) {
    const auto split = [&](torch::nn::Linear& layer) {  // [B, heads, N, features / heads]
      return layer(input).unflatten(-1, {heads, -1}).transpose(1, 2);
    };
    const Tensor mixed = torch_rescaled::attention(split(query), split(key), split(value), {.kind = "signed"});
    return output(mixed.transpose(1, 2).flatten(2));
  }

  int64_t heads;
  torch::nn::Linear query{nullptr}, key{nullptr}, value{nullptr}, output{nullptr};
};

}  // namespace

int main(int count, char** arguments) {
  const int steps = count > 1 ? std::atoi(arguments[1]) : 100;
  const double penalty_weight = count > 2 ? std::atof(arguments[2]) : 0.01;
  torch::manual_seed(0);
  Model model(32, 4);
  torch::optim::Adam optimizer(model.parameters(), torch::optim::AdamOptions(3e-3));
  const Tensor input = torch::randn({8, 24, 32}).requires_grad_();
  const Tensor target = input.detach().flip(1).tanh();  // [B, N, features]

  for (int step = 0; step <= steps; ++step) {
    const Tensor output = model.forward(input);
    const Tensor loss = at::mse_loss(output, target);
    const auto grad = torch::autograd::grad({output.square().sum()}, {input}, {}, std::nullopt, /*create_graph=*/true);
    const Tensor penalty = grad[0].square().mean();
    if (step % 10 == 0)
      std::printf("step %d loss %.6f penalty %.6f\n", step, loss.item<double>(), penalty.item<double>());
    optimizer.zero_grad();
    (loss + penalty_weight * penalty).backward();
    optimizer.step();
  }
}
