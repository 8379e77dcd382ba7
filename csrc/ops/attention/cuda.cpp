// SPDX-License-Identifier: BSD-3-Clause
// The primitives on CUDA: kernels on the current stream where they serve, the plain-tensor formulas elsewhere. Nothing
// waits for the device. Only the device-generic part of torch is used: it compiles with a CPU build too.
//
// With RESCALED_TWIN the same kernels, compiled for the host, stand at the CPU key: a library for tests alone.
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/library.h>

#include "../../kernels/attention/cuda/attention.h"
#include "../cuda_path.h"
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

#if defined(RESCALED_TWIN)
void* stream(const c10::Device&) { return nullptr; }
#else
void* stream(const c10::Device& device) {  // a cudaStream_t
  return c10::impl::VirtualGuardImpl(device.type()).getStream(device).native_handle();
}
#endif

void check_error(const char* op, const char* error) {
  TORCH_CHECK(error == nullptr, "torch_rescaled::", op, ": CUDA error ", error);
}

bool kernels_serve(const Tensor& t) {
  const bool serve = cuda_kernels_serve(CudaFamily::attention, t.device().index());
  if (!serve) warn_of_plain_path(CudaFamily::attention, t.device().index());
  return serve;
}

struct Cuda {
  // The kernels are given no empty problem, but one without keys.
  static bool serves(const Point& x, const Leading& leading) {
    const bool empty = leading.empty() || x.query.size(-2) == 0 || x.query.size(-1) == 0 || x.value.size(-1) == 0;
    const bool countable = x.query.size(-2) <= kMostCudaRows && x.key.size(-2) <= kMostCudaRows;
    return !empty && countable && kernels_serve(x.query);
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

  static bool serves_dropout_mask(const Tensor& seeds) { return kernels_serve(seeds); }
  static void dropout_mask(const Tensor& seeds, int64_t queries, int64_t keys, double dropout_p, Tensor& mask) {
    const c10::DeviceGuard guard(seeds.device());
    const char* error = attention_cuda_dropout_mask(seeds.const_data_ptr<int64_t>(), seeds.numel(), queries, keys,
                                                    dropout_p, mask.mutable_data_ptr<bool>(), stream(seeds.device()));
    check_error("_attention_dropout_mask", error);
  }

 private:
  // The workspace may be given back at once: the allocator hands it on in the order of the stream.
  static void run(const char* op, Primitive primitive, AttentionParameters& p, const Tensor& query) {
    const c10::DeviceGuard guard(query.device());
    const Tensor workspace =
        at::empty({attention_cuda_workspace_bytes(primitive, p)}, query.options().dtype(at::kByte));
    p.workspace = workspace.mutable_data_ptr();
    check_error(op, attention_cuda_run(primitive, p, stream(query.device())));
  }
};

}  // namespace
}  // namespace rescaled::ops

#if defined(RESCALED_TWIN)
#define RESCALED_CUDA_KEY CPU
#else
#define RESCALED_CUDA_KEY CUDA
#endif
TORCH_LIBRARY_IMPL(torch_rescaled, RESCALED_CUDA_KEY, m) {
  using rescaled::ops::Cuda;
  m.impl("_attention_forward", TORCH_FN(rescaled::ops::forward<Cuda>));
  m.impl("_attention_backward", TORCH_FN(rescaled::ops::backward<Cuda>));
  m.impl("_attention_forward_jvp", TORCH_FN(rescaled::ops::forward_jvp<Cuda>));
  m.impl("_attention_jvp", TORCH_FN(rescaled::ops::jvp<Cuda>));
  m.impl("_attention_double_backward", TORCH_FN(rescaled::ops::double_backward<Cuda>));
  m.impl("_attention_dropout_mask", TORCH_FN(rescaled::ops::dropout_mask<Cuda>));
}
