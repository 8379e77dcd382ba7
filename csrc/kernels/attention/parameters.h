// SPDX-License-Identifier: BSD-3-Clause
// What a kernel of the attention family is told: raw pointers, element strides, sizes. No torch, no Python.
#pragma once
#include "../matrices.h"
#include "../program.h"

namespace rescaled {

enum class Primitive { forward, jvp, backward, double_backward };  // double_backward: its second pass, after `jvp`

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

  Output output, balance, log_normalizer;                          // the forward's outputs, or the JVP's tangents
  Output tangent_output, tangent_balance, tangent_log_normalizer;  // beside the forward's outputs
  Output grad_query, grad_key, grad_value, grad_bias;

  void* workspace = nullptr;  // Program::workspace_bytes, shared by the steps of one call
};

using AttentionProgram = Program<AttentionParameters>;
struct AttentionKernels {
  AttentionProgram (*forward)(const AttentionParameters&);
  AttentionProgram (*forward_jvp)(const AttentionParameters&);  // both in one pass
  AttentionProgram (*jvp)(const AttentionParameters&);
  AttentionProgram (*backward)(const AttentionParameters&);
  AttentionProgram (*double_backward)(const AttentionParameters&);  // its second pass; the first is `jvp`
};
const AttentionKernels& attention_cpu_kernels();  // of this processor's instruction set (cpu/isa.h)

}  // namespace rescaled
