// SPDX-License-Identifier: BSD-3-Clause
// The derivative of a map's solution by the implicit function theorem: d unknowns = -H^-1 d(gradient), H^-1 by
// conjugate gradients, and both by differentiating the public loss twice. NaN where H is not positive definite.
#pragma once
#include <functional>
#include <string>

#include "../ops/family.h"
#include "map_ops.h"

namespace torch_rescaled::solvers {

using torch::autograd::variable_list;

struct ImplicitSettings {
  bool is_causal = false, joint = false;
  double regularization = 0;
  std::string kind = "exp", form = "rescaled";
  int64_t rank = 0, sample_dims = 0;  // rank 0: none
  std::string source = "dense";
  template <class Arguments>
  void collect(Arguments& args) const {
    args.collect(is_causal), args.collect(joint), args.collect(regularization), args.collect(kind), args.collect(form);
    args.collect(rank), args.collect(sample_dims), args.collect(source);
  }
  template <class Arguments>
  void pack(Arguments& args) const {
    args.pack(is_causal), args.pack(joint), args.pack(regularization), args.pack(kind), args.pack(form);
    args.pack(rank), args.pack(sample_dims), args.pack(source);
  }
  template <class Arguments>
  void unpack(Arguments& args) {
    is_causal = args.template unpack<bool>(), joint = args.template unpack<bool>();
    regularization = args.template unpack<double>();
    kind = args.template unpack<std::string>(), form = args.template unpack<std::string>();
    rank = args.template unpack<int64_t>(), sample_dims = args.template unpack<int64_t>();
    source = args.template unpack<std::string>();
  }
};

// A batch of solved problems. Unknowns: the tensors that were solved for, [*, ., .] each.
struct ImplicitProblem {
  // A number: the losses' sum, by public operators.
  std::function<Tensor(const variable_list& inputs, const variable_list& unknowns)> loss;
  variable_list inputs, unknowns;  // without history
  // Of problem i, at its unknowns as a vector.
  std::function<Metric(int64_t i, const Tensor& vector)> metric;
  int64_t problems = 1;
};

// -(d gradient / d inputs)^T H^-1 v for cotangents v of the unknowns; inputs not needed are undefined.
variable_list implicit_vjp(const ImplicitProblem&, const variable_list& v, const std::vector<bool>& need);
// -H^-1 (d gradient / d inputs) t
variable_list implicit_jvp(const ImplicitProblem&, const variable_list& tangents);

// Refuses a derivative of a solution over a group, whose losses are parts.
void check_differentiable(const char* op, const variable_list& inputs, size_t count, bool grouped);

// X, or P and Q, and what X's cotangent and tangent are of theirs.
variable_list map_unknowns(const Tensor& X, const Tensor& left, const Tensor& right, int64_t rank);
Tensor map_of(const variable_list& unknowns, int64_t rank);
variable_list map_cotangents(const variable_list& unknowns, const Tensor& X, int64_t rank);
Tensor map_tangent(const variable_list& unknowns, const variable_list& tangents, int64_t rank);
// With dimensions of size 1 for the samples.
Tensor over_samples(Tensor t, int64_t sample_dims);

}  // namespace torch_rescaled::solvers
