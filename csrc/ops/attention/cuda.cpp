// SPDX-License-Identifier: BSD-3-Clause
// The primitives on CUDA: kernels on the current stream where they serve, the plain-tensor formulas elsewhere. Nothing
// waits for the device.
#include <torch/library.h>

#include "../../kernels/attention/cuda/attention.h"
#include "../cuda_call.h"
#include "fused.h"

#if !defined(RESCALED_CUDA) && !defined(RESCALED_TWIN)
// Built without nvcc: nothing calls these, because cuda_kernels_serve() says no.
namespace rescaled {
int64_t attention_cuda_workspace_bytes(Primitive, const AttentionParameters&) { return 0; }
const char* attention_cuda_run(Primitive, const AttentionParameters&, void*) { return "cudaErrorNotSupported"; }
const char* attention_cuda_dropout_mask(const int64_t*, int64_t, int64_t, int64_t, double, bool*, void*) {
  return "cudaErrorNotSupported";
}
}  // namespace rescaled
#endif

namespace rescaled::ops {
namespace {

struct Cuda {
  // The kernels are given no empty problem, but one without keys.
  static bool serves(const Point& x, const Leading& leading) {
    const bool empty = leading.empty() || x.query.size(-2) == 0 || x.query.size(-1) == 0 || x.value.size(-1) == 0;
    const bool countable = x.query.size(-2) <= kMostCudaRows && x.key.size(-2) <= kMostCudaRows;
    return !empty && countable && cuda_serves(CudaFamily::attention, x.query.device());
  }
  static void forward(AttentionParameters& p, const Tensor& query) {
    run("_attention_forward", Primitive::forward, p, query);
  }
  static constexpr bool kForwardJvp = false;
  static void jvp(AttentionParameters& p, const Tensor& query) { run("_attention_jvp", Primitive::jvp, p, query); }
  static void backward(AttentionParameters& p, const Tensor& query) {
    run("_attention_backward", Primitive::backward, p, query);
  }
  static void double_backward(AttentionParameters& p, const Tensor& query) {
    run("_attention_double_backward", Primitive::double_backward, p, query);
  }

  static bool serves_dropout_mask(const Tensor& seeds) { return cuda_serves(CudaFamily::attention, seeds.device()); }
  static void dropout_mask(const Tensor& seeds, int64_t queries, int64_t keys, double dropout_p, Tensor& mask) {
    const c10::DeviceGuard guard(seeds.device());
    const char* error =
        attention_cuda_dropout_mask(seeds.const_data_ptr<int64_t>(), seeds.numel(), queries, keys, dropout_p,
                                    mask.mutable_data_ptr<bool>(), cuda_stream(seeds.device()));
    check_cuda("_attention_dropout_mask", error);
  }

 private:
  // The workspace may be given back at once: the allocator hands it on in the order of the stream.
  static void run(const char* op, Primitive primitive, AttentionParameters& p, const Tensor& query) {
    const c10::DeviceGuard guard(query.device());
    const Tensor workspace =
        at::empty({attention_cuda_workspace_bytes(primitive, p)}, query.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
    check_cuda(op, attention_cuda_run(primitive, p, cuda_stream(query.device())));
  }
};

}  // namespace
}  // namespace rescaled::ops

TORCH_LIBRARY_IMPL(torch_rescaled, RESCALED_CUDA_KEY, m) {
  using rescaled::ops::Cuda;
  m.impl("_attention_forward", TORCH_FN(rescaled::ops::forward<Cuda>));
  m.impl("_attention_backward", TORCH_FN(rescaled::ops::backward<Cuda>));
  m.impl("_attention_forward_jvp", TORCH_FN(rescaled::ops::forward_jvp<Cuda>));
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp<Cuda>));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward<Cuda>));
  m.impl("_attention_dropout_mask", TORCH_FN(rescaled::ops::dropout_mask<Cuda>));
}
