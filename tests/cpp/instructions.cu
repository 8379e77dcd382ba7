// SPDX-License-Identifier: BSD-3-Clause
// The tensor cores' instructions and their twins (csrc/kernels/cuda/ptx.cuh, wgmma.cuh) on small integers, which every
// order of addition adds exactly. A line for each instruction: what every thread got, as a number.
//
//   instructions            prints the lines: on a GPU, those of tests/cuda_instructions.txt
//   instructions FILE       compares them with a file's: on a GPU, or as the twin
#include <cstdio>
#include <fstream>
#include <string>
#include <vector>

#include "../../csrc/kernels/cuda/mma.cuh"
#include "../../csrc/kernels/cuda/wgmma.cuh"

namespace rescaled {
namespace {

constexpr int kThreads = 128, kTileRows = 128, kSize = 128;

RESCALED_DEVICE int number_of(int i) { return (i * 37 + i / 64 * 11) % 15 - 7; }
template <class T>
RESCALED_DEVICE T element_of(int i) {
  T x;
  assign(x, static_cast<float>(number_of(i)));
  return x;
}

// What a thread got, as one number.
struct Sum {
  int value = 0, terms = 0;
  RESCALED_MEMBER void add(double x) { value += (++terms % 29 + 1) * static_cast<int>(x); }
};

template <class T>
RESCALED_DEVICE void load_16bit(T* tile, int* out) {
  const int lane = thread_index() % 32;
  for (int i = thread_index(); i < 64 * 72; i += block_threads()) tile[i] = element_of<T>(i);
  block_barrier();
  uint32_t straight[4], transposed[4];
  load_matrices<false>(straight, tile + lane % 16 * 72 + lane / 16 * 8);
  load_matrices<true>(transposed, tile + lane % 16 * 72 + lane / 16 * 8);
  float c[4] = {1, 2, 3, 4};
  multiply_16bit<T>(c, straight, {transposed[1], transposed[2]});
  Sum sum;
  for (int i = 0; i < 4; ++i) sum.add(straight[i] % 8191), sum.add(transposed[i] % 8191), sum.add(c[i]);
  sum.add(pack_pair<T>(3.f, -5.f) % 8191);
  *out = sum.value;
}

RESCALED_DEVICE void tf32(int* out) {
  const int lane = thread_index() % 32;
  float a[4], b[2], c[4] = {1, 2, 3, 4};
  for (int i = 0; i < 4; ++i) a[i] = to_tf32(static_cast<float>(number_of(4 * lane + i)));
  for (int i = 0; i < 2; ++i) b[i] = to_tf32(static_cast<float>(number_of(999 + 2 * lane + i)));
  multiply_tf32(c, a, b);
  Sum sum;
  for (int i = 0; i < 4; ++i) sum.add(c[i]);
  *out = sum.value;
}

RESCALED_DEVICE void float64(int* out) {
  const int lane = thread_index() % 32;
  double c[2] = {1, 2};
  multiply_f64(c[0], c[1], number_of(lane), number_of(500 + lane));
  Sum sum;
  sum.add(c[0]), sum.add(c[1]);
  *out = sum.value;
}

// Rows and columns in panels, products of both orientations.
template <class T, int kTiles>
RESCALED_DEVICE void warpgroup(T* memory, int* out) {
#if RESCALED_HAS_WARPGROUPS
  T* const columns = memory + kTileRows * kSize;
  for (int i = thread_index(); i < kTileRows * kSize; i += block_threads()) {
    const int r = i / kSize, c = i % kSize, at = panel_offset(kTileRows, r, c / 8 * 8) + c % 8;
    memory[at] = element_of<T>(i), columns[at] = element_of<T>(2 * i + 1);
  }
  products_fence();
  block_barrier();
  const Panels<T> a(memory, kTileRows * kPanelColumns), b(columns, kTileRows * kPanelColumns);
  float scores[kTiles][4], outputs[kTiles < 8 ? 8 : kTiles][4] = {};
  group_fence();
  group_multiply<true>(scores, a, b);
  group_multiply<false>(scores, a.at(48), b.at(kTileRows * kPanelColumns + 32));
  group_commit();
  group_wait();
  uint32_t weights[4];
  for (int i = 0; i < 4; ++i) weights[i] = pack_pair<T>(number_of(thread_index() + i), number_of(7 * i));
  group_fence();
  group_multiply_weights(outputs, weights, b.at(16 * kPanelColumns));
  group_commit();
  group_wait();
  Sum sum;
  for (auto& tile : scores)
    for (float x : tile) sum.add(x);
  for (auto& tile : outputs)
    for (float x : tile) sum.add(x);
  *out = sum.value;
  block_barrier();
#endif
}

constexpr const char* kNames[] = {
    "ldmatrix, m16n8k16 bf16", "ldmatrix, m16n8k16 f16", "m16n8k8 tf32",    "m8n8k4 f64",
    "m64n32k16 bf16",          "m64n64k16 bf16",         "m64n128k16 bf16", "m64n128k16 f16"};
constexpr int kLines = sizeof(kNames) / sizeof(kNames[0]);

__global__ void run(int* out) {
  RESCALED_SHARED(start);
  unsigned char* const memory = start + (1024 - shared_address(start) % 1024) % 1024;
  int* const mine = out + thread_index();
  load_16bit<BFloat16>(reinterpret_cast<BFloat16*>(memory), mine);
  block_barrier();
  load_16bit<Float16>(reinterpret_cast<Float16*>(memory), mine + kThreads);
  block_barrier();
  tf32(mine + 2 * kThreads), float64(mine + 3 * kThreads);
  block_barrier();
  warpgroup<BFloat16, 4>(reinterpret_cast<BFloat16*>(memory), mine + 4 * kThreads);
  warpgroup<BFloat16, 8>(reinterpret_cast<BFloat16*>(memory), mine + 5 * kThreads);
  warpgroup<BFloat16, 16>(reinterpret_cast<BFloat16*>(memory), mine + 6 * kThreads);
  warpgroup<Float16, 16>(reinterpret_cast<Float16*>(memory), mine + 7 * kThreads);
}

std::vector<int> results() {
  std::vector<int> host(kLines * kThreads, 0x7fffffff);
  const int64_t shared_bytes = 1024 + 2 * kTileRows * kSize * 2;
#if defined(RESCALED_TWIN)
  const char* error = launch(run, 1, kThreads, shared_bytes, nullptr, host.data());
#else
  int* device = nullptr;
  const size_t bytes = host.size() * sizeof(int);
  const char* error = cudaMalloc(&device, bytes) == cudaSuccess ? nullptr : "cudaMalloc";
  if (error == nullptr) cudaMemcpy(device, host.data(), bytes, cudaMemcpyHostToDevice);
  if (error == nullptr) error = launch(run, 1, kThreads, shared_bytes, nullptr, device);
  if (error == nullptr && cudaMemcpy(host.data(), device, bytes, cudaMemcpyDeviceToHost) != cudaSuccess) error = "run";
#endif
  if (error != nullptr) {
    std::printf("FAILED: %s\n", error);
    std::exit(1);
  }
  return host;
}

}  // namespace
}  // namespace rescaled

int main(int count, char** arguments) {
  using namespace rescaled;
  const std::vector<int> numbers = results();
  std::ifstream file(count > 1 ? arguments[1] : "");
  int compared = 0;
  for (int line = 0; line < kLines; ++line) {
    std::string text = std::string(kNames[line]) + ":";
    for (int i = 0; i < kThreads; ++i) text += " " + std::to_string(numbers[line * kThreads + i]);
    if (count == 1) {
      std::printf("%s\n", text.c_str());
      continue;
    }
    std::string expected;
    std::getline(file, expected);
    const bool absent = numbers[line * kThreads] == 0x7fffffff;  // not an instruction of this GPU
    if (!absent && text != expected) {
      std::printf("FAILED\n got      %s\n expected %s\n", text.c_str(), expected.c_str());
      return 1;
    }
    compared += !absent;
  }
  if (count > 1) std::printf("ok: %d of %d lines\n", compared, kLines);
}
