// SPDX-License-Identifier: BSD-3-Clause
// Autocast of the regressions, which run in float32: no type that autocast chose may round their arguments.
#pragma once
#include <ATen/autocast_mode.h>

#include "dispatch.h"

namespace rescaled::ops {

// Casts to float32, and keeps autocast away while it lives.
template <c10::DispatchKey kKey>
struct InFloat {
  static constexpr auto device = kKey == c10::DispatchKey::AutocastCPU ? at::kCPU : at::kCUDA;
  const c10::impl::ExcludeDispatchKeyGuard exclude{kKey};
  Tensor operator()(const Tensor& t) const { return at::autocast::cached_cast(at::kFloat, t, device); }
  MaybeTensor operator()(const MaybeTensor& t) const { return t.has_value() ? MaybeTensor((*this)(*t)) : t; }
};

}  // namespace rescaled::ops
