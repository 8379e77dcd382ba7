// SPDX-License-Identifier: BSD-3-Clause
// The attention losses: row epilogues on (W, balance, log_normalizer), docs/math.md (6). They cost N x Dv work beside
// the N x M x D of the core, so they are plain tensor formulas.
#include <ATen/TensorOperators.h>
#include <ATen/ops/clamp_max.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/log.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/ones_like.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros_like.h>
#include <torch/library.h>

#include <cmath>
#include <limits>

#include "autocast.h"
#include "checks.h"
#include "public.h"

namespace rescaled::ops {
namespace {

#define LOSS_PARAMETERS                                                                                            \
  const Tensor &query, const Tensor &key, const Tensor &value, const Tensor &target, const MaybeTensor &attn_mask, \
      bool is_causal, std::optional<double> scale, bool enable_gqa, c10::string_view kind, c10::string_view form,  \
      const MaybeTensor &log_row_scale, c10::string_view reduction, bool log

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double log_of_largest(at::ScalarType type) {
  return type == at::kDouble ? std::log(std::numeric_limits<double>::max())
                             : std::log(static_cast<double>(std::numeric_limits<float>::max()));
}

// A row's loss |r|^2 / 2 with r = e^log_scale residual (log_scale undefined: 0), or its logarithm.
Tensor row_losses(const Tensor& residual, const Tensor& log_scale, bool log) {
  const Tensor square = residual.square().sum(-1);
  if (log) {
    // -inf where the loss is 0, and there the derivative is 0: nothing may reach log or log_scale.
    Tensor positive = square > 0;
    if (log_scale.defined()) positive = positive.logical_and(log_scale != -kInfinity);
    const Tensor zero = at::zeros_like(square);
    Tensor value = (at::where(positive, square, at::ones_like(square)) / 2).log();
    if (log_scale.defined()) value = value + 2 * at::where(positive, log_scale, zero);
    return at::where(positive, value, zero - kInfinity);
  }
  if (!log_scale.defined()) return square / 2;
  // Finite, so that a zero residual has loss 0 at any scale; times itself infinite where the loss is not representable.
  const Tensor factor = log_scale.clamp_max(log_of_largest(log_scale.scalar_type())).exp();
  return factor * square * factor / 2;
}

Tensor reduce(const Tensor& rows, c10::string_view reduction, bool log) {
  if (reduction == "none") return rows;
  if (!log) return reduction == "sum" ? rows.sum() : rows.mean();
  const Tensor sum = rows.flatten().logsumexp(0);
  return reduction == "sum" ? sum : sum - at::ones_like(rows).sum().log();
}

Tensor attention_loss(LOSS_PARAMETERS) {
  const PublicArguments point{query, key, value, defined_or(attn_mask), 0.0, is_causal, scale, enable_gqa, kind};
  const LossArguments loss{target, defined_or(log_row_scale), form, reduction, log};
  check_loss(point, loss);
  const Saved out = attention_core("attention_loss", point);
  check_loss_shapes(loss, out);
  const at::ScalarType type = out.log_normalizer.scalar_type();
  const Tensor output = out.output.to(type), wanted = target.to(type);
  const bool sinh = kind == "sinh";  // for the other kinds the weights are already divided by what rescales them
  if (form == "normalized") {
    const Tensor normalized = sinh ? divided_by_balance(output, out) : output;
    return reduce(row_losses(normalized - wanted, Tensor(), log), reduction, log);
  }
  const Tensor residual = sinh ? output - out.balance.unsqueeze(-1) * wanted : output - wanted;
  Tensor log_scale = out.log_normalizer;
  if (loss.log_row_scale.defined())  // which may be -inf itself for a row without keys
    log_scale =
        at::where(log_scale == -kInfinity, out.log_normalizer, out.log_normalizer - loss.log_row_scale.to(type));
  return reduce(row_losses(residual, log_scale, log), reduction, log);
}

template <c10::DispatchKey kKey>
Tensor attention_loss_autocast(LOSS_PARAMETERS) {
  return Autocast<Tensor(LOSS_PARAMETERS), kKey>::call("torch_rescaled::attention_loss", query, key, value, target,
                                                       attn_mask, is_causal, scale, enable_gqa, kind, form,
                                                       log_row_scale, reduction, log);
}

}  // namespace
}  // namespace rescaled::ops

using namespace rescaled::ops;

TORCH_LIBRARY_IMPL(torch_rescaled, CompositeImplicitAutograd, m) { m.impl("attention_loss", TORCH_FN(attention_loss)); }
TORCH_LIBRARY_IMPL(torch_rescaled, FuncTorchBatched, m) { m.impl("attention_loss", TORCH_FN(attention_loss)); }
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCPU, m) {
  m.impl("attention_loss", TORCH_FN(attention_loss_autocast<c10::DispatchKey::AutocastCPU>));
}
TORCH_LIBRARY_IMPL(torch_rescaled, AutocastCUDA, m) {
  m.impl("attention_loss", TORCH_FN(attention_loss_autocast<c10::DispatchKey::AutocastCUDA>));
}
