// SPDX-License-Identifier: BSD-3-Clause
#pragma once
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>

namespace rescaled::ops {

using at::Tensor;

// Under autocast query, key and value run in its dtype; a mask keeps its own, balance and log_normalizer stay float32.
template <class Signature, c10::DispatchKey kKey>
struct Autocast;
template <class Result, class... Rest, c10::DispatchKey kKey>
struct Autocast<Result(const Tensor&, const Tensor&, const Tensor&, Rest...), kKey> {
  using Signature = Result(const Tensor&, const Tensor&, const Tensor&, Rest...);
  static Result call(const char* name, const Tensor& query, const Tensor& key, const Tensor& value, Rest... rest) {
    const c10::impl::ExcludeDispatchKeyGuard exclude(kKey);
    constexpr auto device = kKey == c10::DispatchKey::AutocastCPU ? at::kCPU : at::kCUDA;
    const auto type = at::autocast::get_autocast_dtype(device);
    const auto cast = [&](const Tensor& t) { return at::autocast::cached_cast(type, t, device); };
    return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>().call(cast(query), cast(key),
                                                                                            cast(value), rest...);
  }
};

}  // namespace rescaled::ops
