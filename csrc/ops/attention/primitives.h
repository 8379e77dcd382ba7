// SPDX-License-Identifier: BSD-3-Clause
// The primitives as C++ calls through the dispatcher, and their arguments in groups (schemas: ../library.cpp).
#pragma once
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "../dispatch.h"

namespace rescaled::ops {

struct AttentionSettings {
  double dropout_p = 0;
  bool is_causal = false;
  std::optional<double> scale;
  std::string kind = "exp";
  // For compiled autograd: what it must specialize on, and what travels through its graph.
  template <class Arguments>
  void collect(Arguments& args) const {
    args.collect(dropout_p);
    args.collect(is_causal);
    args.collect(scale);
    args.collect(kind);
  }
  template <class Arguments>
  void pack(Arguments& args) const {
    args.pack(dropout_p);
    args.pack(is_causal);
    args.pack(scale);
    args.pack(kind);
  }
  template <class Arguments>
  void unpack(Arguments& args) {
    dropout_p = args.template unpack<double>();
    is_causal = args.template unpack<bool>();
    scale = args.template unpack<std::optional<double>>();
    kind = args.template unpack<std::string>();
  }
};

// Absent optional tensors are undefined ones here.
struct Point {
  Tensor query, key, value, bias, mask, dropout_seed;
};
struct Saved {
  Tensor output, balance, log_normalizer;
};
struct Tangents {
  Tensor query, key, value, bias;
};
struct Cotangents {
  Tensor output, balance, log_normalizer;
};

// The sizes that the leading dimensions of a point's tensors broadcast to, aligned at the right.
std::vector<c10::SymInt> leading_sizes(const Point&);

Saved attention_forward(const Point&, const AttentionSettings&);
std::array<Tensor, 4> attention_backward(const Cotangents&, const Point&, const Saved&, const AttentionSettings&,
                                         std::array<bool, 4> need);
std::array<Saved, 2> attention_forward_jvp(const Tangents&, const Point&, const AttentionSettings&);
Saved attention_jvp(const Tangents&, const Point&, const Saved&, const AttentionSettings&);
std::array<Tensor, 7> attention_double_backward(const Tangents&, const Cotangents&, const Point&, const Saved&,
                                                const AttentionSettings&, std::array<bool, 7> need);

// The parameter lists of the schemas, for the kernels of every dispatch key.
#define RESCALED_POINT                                                                                           \
  const Tensor &query, const Tensor &key, const Tensor &value, const MaybeTensor &bias, const MaybeTensor &mask, \
      const MaybeTensor &dropout_seed
#define RESCALED_SAVED const Tensor &output, const Tensor &balance, const Tensor &log_normalizer
#define RESCALED_SETTINGS double dropout_p, bool is_causal, std::optional<double> scale, c10::string_view kind
#define RESCALED_TANGENTS                                                                             \
  const MaybeTensor &tangent_query, const MaybeTensor &tangent_key, const MaybeTensor &tangent_value, \
      const MaybeTensor &tangent_bias
#define RESCALED_COTANGENTS \
  const MaybeTensor &grad_output, const MaybeTensor &grad_balance, const MaybeTensor &grad_log_normalizer

#define RESCALED_THE_POINT \
  Point { query, key, value, defined_or(bias), defined_or(mask), defined_or(dropout_seed) }
#define RESCALED_THE_SAVED \
  Saved { output, balance, log_normalizer }
#define RESCALED_THE_SETTINGS \
  AttentionSettings { dropout_p, is_causal, scale, std::string(kind) }
#define RESCALED_THE_TANGENTS \
  Tangents { defined_or(tangent_query), defined_or(tangent_key), defined_or(tangent_value), defined_or(tangent_bias) }
#define RESCALED_THE_COTANGENTS \
  Cotangents { defined_or(grad_output), defined_or(grad_balance), defined_or(grad_log_normalizer) }

// Their C++ signatures.
using Three = std::tuple<Tensor, Tensor, Tensor>;
using Four = std::tuple<Tensor, Tensor, Tensor, Tensor>;
using Six = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using Seven = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;
using ForwardSignature = Three(RESCALED_POINT, RESCALED_SETTINGS);
using BackwardSignature = Four(RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS,
                               std::array<bool, 4> need);
using ForwardJvpSignature = Six(RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SETTINGS);
using JvpSignature = Three(RESCALED_TANGENTS, RESCALED_POINT, RESCALED_SAVED, RESCALED_SETTINGS);
using DoubleBackwardSignature = Seven(RESCALED_TANGENTS, RESCALED_COTANGENTS, RESCALED_POINT, RESCALED_SAVED,
                                      RESCALED_SETTINGS, std::array<bool, 7> need);
using DropoutMaskSignature = Tensor(const Tensor& dropout_seed, c10::SymInt queries, c10::SymInt keys,
                                    double dropout_p);

}  // namespace rescaled::ops
