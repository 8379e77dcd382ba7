// SPDX-License-Identifier: BSD-3-Clause
// Attention from C++ alone, each of its derivatives and options against the dense formulas: forward, backward, double
// backward and forward mode. Usage: derivatives
#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/forward_grad.h>
#include <torch/types.h>
#include <torch_rescaled/torch_rescaled.h>

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

using Settings = torch_rescaled::AttentionOptions;

// query [B, H, N, D], key [B, H, M, D], value [B, H, M, Dv] -> [B, H, N, Dv]
Tensor attention(const Tensors& point, const Settings& settings) {
  return torch_rescaled::attention(point[0], point[1], point[2], settings);
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

void check_options() {
  const auto random = [](at::IntArrayRef shape) { return torch::randn(shape, torch::kDouble); };
  const Tensor query = random({2, 6, 37, 16}), key = random({2, 2, 53, 16}), value = random({2, 2, 53, 24});
  const Tensor log_weight = random({37, 53});
  const Settings settings{.attn_mask = log_weight, .scale = 0.3, .enable_gqa = true, .kind = "sinh"};
  const auto [output, balance, log_normalizer] = torch_rescaled::attention_with_normalizer(query, key, value, settings);

  const Tensor score = 0.3 * query.matmul(key.repeat_interleave(3, 1).transpose(-2, -1));
  const Tensor weight = log_weight.exp() * score.sinh(), normalizer = (log_weight.exp() * score.cosh()).sum(-1, true);
  const Tensor mixed = weight.matmul(value.repeat_interleave(3, 1));
  check_close("normalizer of sinh, mask, scale, grouped queries", {output, balance, log_normalizer},
              {mixed / normalizer, weight.sum(-1) / normalizer.squeeze(-1), normalizer.squeeze(-1).log()});
  check_close("quotient of sinh by its balance", {torch_rescaled::attention(query, key, value, settings)},
              {output / balance.unsqueeze(-1)});

  // Rescaled: the residual with the normalizer multiplied through, here divided by e^0.7; normalized: divided out.
  const Tensor target = random({2, 6, 37, 24}), row_scale = torch::full({37}, 0.7, torch::kDouble);
  const auto half_square = [](const Tensor& residual) { return 0.5 * residual.square().sum(-1); };
  const auto loss = [&](const torch_rescaled::AttentionLossOptions& loss_settings) {
    return torch_rescaled::attention_loss(query, key, value, target, loss_settings);
  };
  torch_rescaled::AttentionLossOptions rescaled{
      .attn_mask = log_weight, .scale = 0.3, .enable_gqa = true, .kind = "sinh", .log_row_scale = row_scale};
  auto normalized = rescaled, logarithm = rescaled;
  rescaled.reduction = "none";
  normalized.kind = "cosh", normalized.form = "normalized", normalized.log_row_scale = std::nullopt;
  logarithm.log = true;
  const Tensor rows = half_square((mixed - weight.sum(-1, true) * target) / std::exp(0.7));
  const Tensor cosh_weight = log_weight.exp() * score.cosh();
  const Tensor cosh_output = cosh_weight.matmul(value.repeat_interleave(3, 1)) / normalizer;
  check_close("losses", {loss(rescaled), loss(normalized), loss(logarithm)},
              {rows, half_square(cosh_output - target).sum(), rows.sum().log()});

  const Tensor ones = torch::ones({4, 1000, 1}, torch::kDouble);
  const Tensor kept = torch_rescaled::attention(random({4, 200, 8}), random({4, 1000, 8}), ones, {.dropout_p = 0.5});
  report(std::abs(kept.mean().item<double>() - 1) < 0.01 && kept.std().item<double>() > 0.01,
         "dropout keeps the mean, not each row", "mean " + std::to_string(kept.mean().item<double>()));
}

}  // namespace

int main() {
  try {
    at::manual_seed(0);
    for (const char* kind : {"exp", "cosh", "signed"})
      for (const bool is_causal : {false, true}) check_derivatives({.is_causal = is_causal, .kind = kind});
    check_options();
  } catch (const c10::Error& error) {
    report(false, "no exception", error.what_without_backtrace());
  }
  return failures != 0;
}
