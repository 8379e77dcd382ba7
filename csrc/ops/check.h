// SPDX-License-Identifier: BSD-3-Clause
// The words of every refusal: "torch_rescaled::<op>: expected ..., got ...".
#pragma once
#include <ATen/core/Tensor.h>

#include <sstream>
#include <string>
#include <vector>

#include "../kernels/matrices.h"

namespace rescaled::ops {

using at::Tensor;

#define RESCALED_CHECK(KIND, condition, op, ...) \
  TORCH_CHECK_##KIND(condition, "torch_rescaled::", op, ": expected ", __VA_ARGS__)

inline bool floating(at::ScalarType t) {
  return t == at::kFloat || t == at::kDouble || t == at::kBFloat16 || t == at::kHalf;
}

inline std::string shape(const Tensor& t) {
  std::ostringstream out;
  out << t.sym_sizes();
  return out.str();
}
inline std::string list(const std::vector<c10::SymInt>& sizes) {
  std::ostringstream out;
  out << "[";
  for (size_t i = 0; i < sizes.size(); ++i) out << (i ? ", " : "") << sizes[i];
  out << "]";
  return out.str();
}

inline void check_has_kernels(const char* op, const char* name, const Tensor& t) {
  RESCALED_CHECK(NOT_IMPLEMENTED, t.device().is_cpu() || t.device().is_cuda() || t.device().is_meta(), op,
                 "tensors on the CPU or CUDA (or meta), got ", name, " on ", t.device(),
                 "; kernels for this device do not exist yet");
}

inline void check_device(const char* op, const char* name, const Tensor& t, const char* like_name, const Tensor& like) {
  RESCALED_CHECK(VALUE, t.device() == like.device(), op, name, " on ", like_name, "'s device ", like.device(), ", got ",
                 t.device());
}

// A tensor whose leading dimension `d`, counted from the right, must be `expected` or 1.
inline void check_leading(const char* op, const char* name, const Tensor& t, int64_t suffix,
                          const std::vector<c10::SymInt>& full) {
  const int64_t rank = t.dim() - suffix;
  for (int64_t i = 1; i <= rank; ++i) {
    const c10::SymInt size = t.sym_size(rank - i);
    const bool fits = i <= static_cast<int64_t>(full.size()) && (size == 1 || size == full[full.size() - i]);
    RESCALED_CHECK(VALUE, fits, op, name, " with leading dimensions that broadcast to ", list(full), ", got ",
                   shape(t));
  }
}

// The kernels walk at most kMaxBatchRank leading dimensions. `grouped`: query heads become two dimensions.
inline void check_batch_rank(const char* op, const std::vector<c10::SymInt>& full, bool grouped = false) {
  if (full.size() + grouped <= kMaxBatchRank) return;  // no guard on sizes where ranks suffice
  int64_t count = grouped;
  for (const c10::SymInt& size : full) count += size > 1;
  RESCALED_CHECK(NOT_IMPLEMENTED, count <= kMaxBatchRank, op, "at most ", kMaxBatchRank,
                 " leading dimensions larger than 1", grouped ? " (grouped heads count as two)" : "", ", got ", count);
}

}  // namespace rescaled::ops
