// SPDX-License-Identifier: BSD-3-Clause
// Trains a TorchScript module that Python saved, and saves the losses and the parameters for Python to load.
// Usage: script MODULE.pt DATA.pt STEPS RESULT.pt
//   MODULE.pt   by torch.jit.save
//   DATA.pt     by torch.save: (input, target)
//   RESULT.pt   for torch.load: (losses [STEPS], the parameters of the trained module in order)
#include <torch/script.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <string>
#include <vector>

#include "files.h"

namespace {

using torch::Tensor;

// Plain gradient descent: what torch.optim.SGD does, without its headers.
void train(const std::string& module_path, const std::string& data_path, int steps, const std::string& result_path) {
  torch::jit::Module module = torch::jit::load(module_path);
  module.train();
  const std::vector<Tensor> data = load_tensors(data_path);
  std::vector<Tensor> parameters, losses;
  for (const Tensor& parameter : module.parameters()) parameters.push_back(parameter);
  for (int step = 0; step < steps; ++step) {
    for (Tensor& parameter : parameters) parameter.mutable_grad() = Tensor();
    const Tensor loss = at::mse_loss(module.forward({data[0]}).toTensor(), data[1]);
    loss.backward();
    const torch::NoGradGuard guard;
    for (Tensor& parameter : parameters) parameter.sub_(parameter.grad(), 0.1);
    losses.push_back(loss.detach());
    std::printf("step %d loss %.6f\n", step, loss.item<double>());
  }
  std::vector<Tensor> result{at::stack(losses)};
  result.insert(result.end(), parameters.begin(), parameters.end());
  save_tensors(result, result_path);
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 5) {
    std::fprintf(stderr, "usage: script MODULE.pt DATA.pt STEPS RESULT.pt\n");
    return 2;
  }
  try {
    train(arguments[1], arguments[2], std::atoi(arguments[3]), arguments[4]);
  } catch (const c10::Error& error) {
    std::fprintf(stderr, "script: %s\n", error.what_without_backtrace());
    return 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "script: %s\n", error.what());
    return 1;
  }
}
