// SPDX-License-Identifier: BSD-3-Clause
// torch_rescaled from C++ alone: forward, backward, double backward and forward mode against dense formulas, then one
// training step of a module that was scripted and saved in Python. Usage: smoke MODULE.pt
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/script.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

namespace {

using torch::Tensor;
using Tensors = std::vector<Tensor>;

int failures = 0;

void report(bool ok, const std::string& what, const std::string& detail) {
  std::printf("%s: %s (%s)\n", ok ? "ok" : "FAILED", what.c_str(), detail.c_str());
  failures += !ok;
}

void check_close(const std::string& what, const Tensors& got, const Tensors& expected) {
  double error = got.size() == expected.size() ? 0 : HUGE_VAL;
  for (size_t i = 0; i < std::min(got.size(), expected.size()); ++i) {
    const double scale = std::max(1.0, expected[i].abs().max().item<double>());
    const double difference = (got[i] - expected[i]).abs().max().item<double>() / scale;
    if (!(difference <= error)) error = difference;  // NaN counts as the largest
  }
  char detail[64];
  std::snprintf(detail, sizeof detail, "relative error %.1e", error);
  report(error <= 1e-12, what, detail);
}

struct Settings {
  std::string kind;
  bool is_causal;
};

// query [B, H, N, D], key [B, H, M, D], value [B, H, M, Dv] -> [B, H, N, Dv]
Tensor attention(const Tensors& point, const Settings& settings) {
  using Signature = Tensor(const Tensor&, const Tensor&, const Tensor&, const std::optional<Tensor>&, double, bool,
                           std::optional<double>, bool, c10::string_view);
  static const auto op =
      c10::Dispatcher::singleton().findSchemaOrThrow("torch_rescaled::attention", "").typed<Signature>();
  return op.call(point[0], point[1], point[2], std::nullopt, 0.0, settings.is_causal, std::nullopt, false,
                 settings.kind);
}

// The same with the N x M weights in memory.
Tensor dense_attention(const Tensors& point, const Settings& settings) {
  const Tensor score = point[0].matmul(point[1].transpose(-2, -1)) / std::sqrt(static_cast<double>(point[0].size(-1)));
  const bool two_sided = settings.kind != "exp";
  Tensor weight = settings.kind == "exp" ? score.exp() : settings.kind == "cosh" ? score.cosh() : score.sinh();
  Tensor size = two_sided ? score.cosh() : weight;
  if (settings.is_causal) {
    const Tensor attended = torch::ones_like(score).tril();
    weight = weight * attended;
    size = size * attended;
  }
  return weight.matmul(point[2]) / size.sum(-1, true);
}

using Attention = Tensor (*)(const Tensors&, const Settings&);

struct Derivatives {
  Tensors forward, backward, double_backward, jvp;
};

Derivatives derivatives(Attention compute, const Settings& settings, const Tensors& data, const Tensors& tangents) {
  Derivatives result;
  Tensors leaves;  // the point and a cotangent of the output
  for (const Tensor& t : data) leaves.push_back(t.detach().requires_grad_());
  const Tensors point(leaves.begin(), leaves.begin() + 3);

  const Tensor output = compute(point, settings);
  result.forward = {output.detach()};
  result.backward = torch::autograd::grad({output}, point, {leaves[3]}, std::nullopt, /*create_graph=*/true);
  result.double_backward = torch::autograd::grad(result.backward, leaves, tangents);

  const uint64_t level = torch::autograd::ForwardADLevel::get_next_idx();
  Tensors duals;
  for (size_t i = 0; i < 3; ++i) duals.push_back(at::_make_dual(data[i], tangents[i], static_cast<int64_t>(level)));
  const auto dual_output = at::_unpack_dual(compute(duals, settings), static_cast<int64_t>(level));
  result.jvp = {std::get<0>(dual_output).clone(), std::get<1>(dual_output).clone()};
  torch::autograd::ForwardADLevel::release_idx(level);
  return result;
}

void check_derivatives(const Settings& settings) {
  const auto random = [](at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble); };
  const Tensors data = {random({2, 3, 37, 16}), random({2, 3, 53, 16}), random({2, 3, 53, 24}), random({2, 3, 37, 24})};
  Tensors tangents;
  for (size_t i = 0; i < 3; ++i) tangents.push_back(torch::randn_like(data[i]));
  const Derivatives got = derivatives(attention, settings, data, tangents);
  const Derivatives expected = derivatives(dense_attention, settings, data, tangents);
  const std::string of = " of " + settings.kind + (settings.is_causal ? ", causal" : "");
  check_close("forward" + of, got.forward, expected.forward);
  check_close("backward" + of, got.backward, expected.backward);
  check_close("double backward" + of, got.double_backward, expected.double_backward);
  check_close("forward mode" + of, got.jvp, expected.jvp);
}

// The module maps [B, N, features] to the same shape; fit it to random targets by one step of gradient descent.
void check_training(const std::string& path) {
  torch::jit::Module module = torch::jit::load(path);
  module.train();
  const Tensor input = torch::randn({4, 20, 32}), target = torch::randn({4, 20, 32});
  const auto loss_now = [&] { return at::mse_loss(module.forward({input}).toTensor(), target); };
  const Tensor before = loss_now();
  before.backward();
  {
    const torch::NoGradGuard guard;
    for (Tensor parameter : module.parameters()) {
      const bool reached = parameter.grad().defined() && parameter.grad().abs().sum().item<double>() > 0;
      if (!reached) report(false, "gradient of every parameter", "one got none");
      if (reached) parameter.sub_(parameter.grad(), 0.1);
    }
  }
  const double first = before.item<double>(), second = loss_now().item<double>();
  report(second < first, "training step of the scripted module",
         "loss " + std::to_string(first) + " to " + std::to_string(second));
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 2) {
    std::fprintf(stderr, "usage: smoke MODULE.pt (a module saved by torch.jit.save)\n");
    return 2;
  }
  try {
    torch::manual_seed(0);
    for (const char* kind : {"exp", "cosh", "signed"})
      for (const bool is_causal : {false, true}) check_derivatives({kind, is_causal});
    check_training(arguments[1]);
  } catch (const c10::Error& error) {
    report(false, "no exception", error.what_without_backtrace());
  } catch (const std::exception& error) {
    report(false, "no exception", error.what());
  }
  return failures != 0;
}
