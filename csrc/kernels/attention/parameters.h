// SPDX-License-Identifier: BSD-3-Clause
// What a kernel of the attention family is told: raw pointers, element strides, sizes. No torch, no Python.
#pragma once
#include <cstdint>

namespace rescaled {

enum class DType : int32_t { float32, float64, bfloat16, float16, boolean, int64 };
enum class Kind : int32_t { exp, cosh, sinh };
enum class Primitive { forward, jvp, backward, double_backward };  // double_backward: its second pass, after `jvp`

inline constexpr int kMaxBatchRank = 8;

// A batch of matrices [*batch, rows, columns] (of vectors: column = 0; of numbers: row = column = 0). Strides in
// elements, 0 where broadcast. Absent: data = nullptr.
template <class Pointer>
struct Matrices {
  Pointer data = nullptr;
  DType dtype = DType::float32;
  int64_t row = 0, column = 0;
  int64_t batch[kMaxBatchRank] = {};
  explicit operator bool() const { return data != nullptr; }
};
using Input = Matrices<const void*>;
using Output = Matrices<void*>;

// One struct for the four primitives; each reads what it needs. Formulas: docs/math.md.
struct AttentionParameters {
  Kind kind = Kind::exp;
  bool causal = false;
  int64_t queries = 0, keys = 0, head_size = 0, value_size = 0;
  double scale = 1, dropout_p = 0;

  // Leading dimensions, those that key and value have first.
  // Matrix `b` of the `kv_batches * group` uses key and value number `b / group`.
  int rank = 0;
  int64_t sizes[kMaxBatchRank] = {};
  int64_t kv_batches = 0, group = 1;

  Input query, key, value;  // [., N, D], [., M, D], [., M, Dv]
  Input bias, mask;         // [., N | 1, M | 1] log weight of the key; bool, true = attend
  Input dropout_seed;       // [.]
  Input tangent_query, tangent_key, tangent_value, tangent_bias;
  Input grad_output, grad_balance, grad_log_normalizer;
  Input saved_output, saved_balance, saved_log_normalizer;  // W, rho, l of the forward
  // Double backward, second pass: what its first pass, the JVP, gave.
  Input jvp_output, jvp_balance, jvp_log_normalizer;

  Output output, balance, log_normalizer;  // the forward's outputs, or the JVP's tangents
  Output grad_query, grad_key, grad_value, grad_bias;

  void* workspace = nullptr;  // Program::workspace_bytes, shared by the steps of one call
};

// Work for a pool of threads: tasks [0, tasks) in any order, each task once; every thread brings `scratch_bytes`,
// aligned to 64 bytes.
struct Step {
  int64_t tasks = 0, scratch_bytes = 0;
  void (*run)(const AttentionParameters&, int64_t begin, int64_t end, void* scratch) = nullptr;
};
// Steps run one after another. What a task computes depends on the shapes alone, never on the threads.
struct Program {
  Step steps[4];
  int count = 0;
  int64_t workspace_bytes = 0;
};

struct AttentionKernels {
  Program (*forward)(const AttentionParameters&);
  Program (*jvp)(const AttentionParameters&);
  Program (*backward)(const AttentionParameters&);
  Program (*double_backward)(const AttentionParameters&);  // its second pass; the first is `jvp`
};
const AttentionKernels& attention_cpu_kernels();  // of this processor's instruction set (cpu/isa.h)

}  // namespace rescaled
