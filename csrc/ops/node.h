// SPDX-License-Identifier: BSD-3-Clause
// Recording of an operator at the Autograd key, in reverse and in forward mode, the way PyTorch's generated kernels do
// it. The only file that touches torch's autograd internals; they differ between releases (2.11 to 2.13 are covered).
//
// A Rule describes one primitive:
//   using Settings        its non-tensor arguments; `collect`, `pack` and `unpack` show them to compiled autograd
//   kInputs, kOutputs     how many leading inputs and outputs are differentiable
//   kAuxiliaries          how many inputs follow that are not
//   kSavesOutputs         does `vjp` read the outputs?
//   kTraceable            may compiled autograd trace `vjp`? (not if it runs the autograd engine)
//   name()
//   vjp(settings, in, out, grads, need) -> gradients of the kInputs inputs; undefined = zero, in and out
//   jvp(settings, in, tangents, out)    -> tangents of the kOutputs outputs; undefined = zero, in and out
#pragma once
#include <ATen/core/Tensor.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/csrc/dynamo/compiled_autograd.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

namespace rescaled::ops {

using at::Tensor;
using torch::autograd::variable_list;

// Nodes are held by shared_ptr up to torch 2.12, by intrusive_ptr from 2.13.
template <class N>
auto make_node() {
  if constexpr (std::is_base_of_v<c10::intrusive_ptr_target, N>) {
    return c10::make_intrusive<N>();
  } else {
    return std::shared_ptr<N>(new N(), [](N* node) { deleteNode(node); });
  }
}

template <class Rule>
struct RuleNode : torch::autograd::Node {
  std::vector<torch::autograd::SavedVariable> inputs, outputs;
  typename Rule::Settings settings;

  std::string name() const override { return Rule::name(); }

  variable_list apply(variable_list&& grads) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    return gradients(settings, unpacked_inputs(), unpacked_outputs(), grads, needed());
  }
  void release_variables() override {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (auto& saved : inputs) saved.reset_data();
    for (auto& saved : outputs) saved.reset_data();
  }
  void compiled_args(torch::dynamo::autograd::CompiledNodeArgs& args) const override {
    args.collect(inputs, /*is_output=*/false);
    args.collect(outputs, /*is_output=*/true);
    settings.collect(args);
  }
  // Compiled autograd runs no node while it captures: it takes a function of (grads, packed arguments) into its graph.
  variable_list apply_with_saved(const variable_list& grads,
                                 torch::dynamo::autograd::SwapSavedVariables& saved) override {
    saved.before(inputs);
    saved.before(outputs);
    torch::dynamo::autograd::PackedArgs packed;
    for (const Tensor& t : unpacked_inputs()) packed.pack(t);
    packed.pack(static_cast<int64_t>(outputs.size()));
    for (const Tensor& t : unpacked_outputs()) packed.pack(t);
    packed.pack(needed());
    settings.pack(packed);
    const std::vector<at::IValue> args = packed.vec();
    std::vector<at::TypePtr> schema;
    for (const at::IValue& arg : args)
      schema.push_back(arg.isTensor() ? at::TypePtr(at::TensorType::get()) : arg.type());
    const auto& compiler = torch::dynamo::autograd::getPyCompilerInterface();
    const std::string function = compiler->bind_function(saved.get_py_compiler(), name(), &RuleNode::functional, schema,
                                                         /*is_custom_function=*/true, Rule::kTraceable);
    using Metadata = std::vector<std::optional<torch::autograd::InputMetadata>>;
    variable_list result = compiler->call_function(saved.get_py_compiler(), "apply_functional", function, grads, args,
                                                   torch::dynamo::autograd::IValuePacker<Metadata>::pack(
                                                       torch::dynamo::autograd::get_input_metadata(next_edges())));
    saved.after(inputs);
    saved.after(outputs);
    return result;
  }

 private:
  variable_list unpacked_inputs() const {
    variable_list in;
    for (const auto& saved : inputs) in.push_back(saved.unpack());
    return in;
  }
  variable_list unpacked_outputs() {
    variable_list out;
    for (const auto& saved : outputs) out.push_back(saved.unpack(getptr()));
    return out;
  }
  std::vector<bool> needed() const {
    std::vector<bool> need;
    for (size_t i = 0; i < Rule::kInputs; ++i) need.push_back(task_should_compute_output(i));
    return need;
  }
  static variable_list gradients(const typename Rule::Settings& settings, const variable_list& in,
                                 const variable_list& out, const variable_list& grads, const std::vector<bool>& need) {
    const bool any = std::any_of(grads.begin(), grads.end(), [](const Tensor& g) { return g.defined(); });
    if (!any) return variable_list(Rule::kInputs);
    variable_list result = Rule::vjp(settings, in, out, grads, need);
    for (size_t i = 0; i < Rule::kInputs; ++i)
      if (!need[i]) result[i] = Tensor();
    return result;
  }
  static variable_list functional(const variable_list& grads, const std::vector<at::IValue>& args) {
    torch::dynamo::autograd::PackedArgs packed(args);
    variable_list in, out;
    for (size_t i = 0; i < Rule::kInputs + Rule::kAuxiliaries; ++i) in.push_back(packed.unpack<Tensor>());
    for (auto count = packed.unpack<int64_t>(); count > 0; --count) out.push_back(packed.unpack<Tensor>());
    const auto need = packed.unpack<std::vector<bool>>();
    typename Rule::Settings settings;
    settings.unpack(packed);
    return gradients(settings, in, out, grads, need);
  }
};

inline bool any_tangent(const variable_list& inputs, size_t count) {
  for (size_t i = 0; i < count; ++i)
    if (torch::autograd::isFwGradDefined(inputs[i])) return true;
  return false;
}
inline bool any_requires_grad(const variable_list& inputs, size_t count) {
  if (!at::GradMode::is_enabled()) return false;
  for (size_t i = 0; i < count; ++i)
    if (inputs[i].defined() && inputs[i].requires_grad()) return true;
  return false;
}

// What duals consist of; a tangent that is absent is undefined.
inline std::pair<variable_list, variable_list> primals_and_tangents(const variable_list& inputs) {
  variable_list primals, tangents;
  for (const Tensor& input : inputs) {
    const Tensor tangent = input.defined() ? input._fw_grad(/*level=*/0) : Tensor();
    primals.push_back(tangent.defined() ? input._fw_primal(/*level=*/0) : input);
    tangents.push_back(tangent);
  }
  return {std::move(primals), std::move(tangents)};
}

// Runs `below` (the operator under the Autograd key) and records it by the Rule; where inputs are duals,
// along(primals, tangents, outputs) gives the tangents of the outputs.
template <class Rule, class Below, class Along>
variable_list record(const typename Rule::Settings& settings, const variable_list& inputs, Below&& below,
                     Along&& along) {
  const bool reverse = any_requires_grad(inputs, Rule::kInputs), forward = any_tangent(inputs, Rule::kInputs);
  decltype(make_node<RuleNode<Rule>>()) node;
  if (reverse) {
    node = make_node<RuleNode<Rule>>();
    torch::autograd::edge_list edges;
    for (size_t i = 0; i < Rule::kInputs; ++i)
      edges.push_back(inputs[i].defined() ? torch::autograd::impl::gradient_edge(inputs[i]) : torch::autograd::Edge());
    node->set_next_edges(std::move(edges));
    node->settings = settings;
    for (const Tensor& input : inputs) node->inputs.emplace_back(input, /*is_output=*/false);
  }
  variable_list outputs;
  {
    const at::AutoDispatchBelowADInplaceOrView guard;
    outputs = below();
  }
  if (reverse)
    for (size_t i = 0; i < Rule::kOutputs; ++i) torch::autograd::set_history(outputs[i], node);
  if (forward) {
    auto [primals, tangents] = primals_and_tangents(inputs);
    tangents.resize(Rule::kInputs);
    const variable_list output_tangents = along(primals, tangents, outputs);
    for (size_t i = 0; i < Rule::kOutputs; ++i)
      if (output_tangents[i].defined())
        outputs[i]._set_fw_grad(output_tangents[i], /*level=*/0, /*is_inplace_op=*/false);
  }
  if (reverse && Rule::kSavesOutputs)
    for (const Tensor& output : outputs) node->outputs.emplace_back(output, /*is_output=*/true);
  return outputs;
}

template <class Rule, class Below>
variable_list record(const typename Rule::Settings& settings, const variable_list& inputs, Below&& below) {
  return record<Rule>(settings, inputs, std::forward<Below>(below),
                      [&](const variable_list& primals, const variable_list& tangents, const variable_list& outputs) {
                        return Rule::jvp(settings, primals, tangents, outputs);
                      });
}

// Compiled autograd calls opaque rules with Python's global lock held, and the engine refuses to run under it. The
// library does not link Python: in a Python process its functions are there to be found.
class WithoutGlobalLock {
 public:
  WithoutGlobalLock() {
    const auto held = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
    const auto save = reinterpret_cast<void* (*)()>(dlsym(RTLD_DEFAULT, "PyEval_SaveThread"));
    if (held != nullptr && save != nullptr && held() != 0) state_ = save();
  }
  ~WithoutGlobalLock() {
    if (state_ != nullptr) reinterpret_cast<void (*)(void*)>(dlsym(RTLD_DEFAULT, "PyEval_RestoreThread"))(state_);
  }
  WithoutGlobalLock(const WithoutGlobalLock&) = delete;
  WithoutGlobalLock& operator=(const WithoutGlobalLock&) = delete;

 private:
  void* state_ = nullptr;
};

// Reverse rule by differentiating a plain-tensor formula, only when asked for.
// `formula(inputs)` -> outputs; an undefined one has no gradient.
template <class Formula>
variable_list differentiate(Formula&& formula, const variable_list& inputs, size_t count, const variable_list& grads) {
  const bool create_graph = at::GradMode::is_enabled();
  const at::AutoGradMode enable(true);
  variable_list x = inputs, leaves, y, cotangents;
  std::vector<size_t> positions;
  for (size_t i = 0; i < count; ++i) {
    if (!inputs[i].defined()) continue;
    x[i] =
        create_graph && inputs[i].requires_grad() ? inputs[i].view_as(inputs[i]) : inputs[i].detach().requires_grad_();
    leaves.push_back(x[i]);
    positions.push_back(i);
  }
  const variable_list outputs = formula(x);
  for (size_t i = 0; i < outputs.size(); ++i)
    if (grads[i].defined() && outputs[i].defined() && outputs[i].requires_grad())
      y.push_back(outputs[i]), cotangents.push_back(grads[i]);
  variable_list result(count);
  if (y.empty()) return result;
  const WithoutGlobalLock released;
  const variable_list found =
      torch::autograd::grad(y, leaves, cotangents, /*retain_graph=*/create_graph, create_graph, /*allow_unused=*/true);
  for (size_t i = 0; i < positions.size(); ++i) result[positions[i]] = found[i];
  return result;
}

// For operators without derivatives: a backward through them, or a tangent into them, is an error that names them.
inline torch::CppFunction not_differentiable() { return torch::autograd::autogradNotImplementedFallback(); }

}  // namespace rescaled::ops
