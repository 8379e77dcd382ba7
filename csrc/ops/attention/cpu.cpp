// SPDX-License-Identifier: BSD-3-Clause
// The primitives on CPU: tensors to kernel parameters, workspace, threads.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/core/CPUAllocator.h>
#include <torch/library.h>

#include <atomic>

#include "../../kernels/attention/parameters.h"

namespace {

using at::Tensor;
using MaybeTensor = std::optional<Tensor>;
using rescaled::AttentionParameters;
using rescaled::Input;
using rescaled::Output;

rescaled::DType dtype_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case at::kFloat:
      return rescaled::DType::float32;
    case at::kDouble:
      return rescaled::DType::float64;
    case at::kBFloat16:
      return rescaled::DType::bfloat16;
    case at::kHalf:
      return rescaled::DType::float16;
    case at::kLong:
      return rescaled::DType::int64;
    default:
      return rescaled::DType::boolean;
  }
}

// The arithmetic type, and that of balance and log_normalizer.
at::ScalarType accumulation_type(const Tensor& t) { return t.scalar_type() == at::kDouble ? at::kDouble : at::kFloat; }

// Sizes of the leading dimensions, and the order in which the kernels walk them: those that key or value have first.
class Leading {
 public:
  Leading(std::initializer_list<std::pair<const Tensor*, int64_t>> tensors, const Tensor& key, const Tensor& value) {
    rank_ = key.dim() - 2;
    full_.assign(rank_, 1);
    for (const auto& [tensor, suffix] : tensors)
      if (tensor->defined())
        for (int64_t d = 0; d < rank_; ++d)
          if (tensor->size(d) != 1) full_[d] = tensor->size(d);
    for (const bool shared : {false, true})
      for (int64_t d = 0; d < rank_; ++d)
        if (full_[d] != 1 && (key.size(d) == 1 && value.size(d) == 1) == shared) order_.push_back(d);
    TORCH_CHECK_NOT_IMPLEMENTED(order_.size() <= rescaled::kMaxBatchRank,
                                "torch_rescaled::attention: expected at most ", rescaled::kMaxBatchRank,
                                " leading dimensions larger than 1, got ", order_.size());
    for (int64_t d = 0; d < rank_; ++d) keys_.push_back(key.size(d) == 1 && value.size(d) == 1 ? 1 : full_[d]);
  }

  void describe(AttentionParameters& p) const {
    p.rank = static_cast<int>(order_.size());
    p.kv_batches = p.group = 1;
    for (int i = 0; i < p.rank; ++i) {
      p.sizes[i] = full_[order_[i]];
      (keys_[order_[i]] == 1 ? p.group : p.kv_batches) *= p.sizes[i];
    }
  }
  bool empty() const { return std::find(full_.begin(), full_.end(), 0) != full_.end(); }
  std::vector<int64_t> full(at::IntArrayRef suffix) const { return join(full_, suffix); }
  std::vector<int64_t> keys(at::IntArrayRef suffix) const { return join(keys_, suffix); }

  // `suffix`: dimensions after the leading ones (2 matrix, 1 vector, 0 number). Broadcast dimensions get stride 0.
  template <class Pointer>
  void strides(const Tensor& t, int64_t suffix, rescaled::Matrices<Pointer>& m) const {
    m.dtype = dtype_of(t);
    for (size_t i = 0; i < order_.size(); ++i) m.batch[i] = t.size(order_[i]) == 1 ? 0 : t.stride(order_[i]);
    if (suffix > 0) m.row = t.size(rank_) == 1 ? 0 : t.stride(rank_);
    if (suffix > 1) m.column = t.size(rank_ + 1) == 1 ? 0 : t.stride(rank_ + 1);
  }
  Input input(const Tensor& t, int64_t suffix) const {
    Input m;
    if (!t.defined()) return m;
    strides(t, suffix, m);
    m.data = t.const_data_ptr();
    if (!m.data) m.data = this;  // an empty tensor is there, and never read
    return m;
  }
  Output output(const Tensor& t, int64_t suffix) const {
    Output m;
    if (!t.defined()) return m;
    strides(t, suffix, m);
    m.data = t.mutable_data_ptr();
    return m;
  }

 private:
  static std::vector<int64_t> join(std::vector<int64_t> sizes, at::IntArrayRef suffix) {
    sizes.insert(sizes.end(), suffix.begin(), suffix.end());
    return sizes;
  }
  int64_t rank_;
  std::vector<int64_t> full_, keys_, order_;
};

// The arguments that all primitives share.
struct Point {
  Tensor query, key, value, bias, mask, dropout_seed;
  double dropout_p;
  bool is_causal;
  std::optional<double> scale;
  std::string_view kind;
};

AttentionParameters parameters(const Point& x, const Leading& leading) {
  AttentionParameters p;
  leading.describe(p);
  p.kind = x.kind == "exp" ? rescaled::Kind::exp : x.kind == "cosh" ? rescaled::Kind::cosh : rescaled::Kind::sinh;
  p.causal = x.is_causal;
  p.dropout_p = x.dropout_p;
  p.queries = x.query.size(-2), p.keys = x.key.size(-2), p.head_size = x.query.size(-1),
  p.value_size = x.value.size(-1);
  p.scale = x.scale.value_or(1 / std::sqrt(static_cast<double>(std::max<int64_t>(p.head_size, 1))));
  p.query = leading.input(x.query, 2), p.key = leading.input(x.key, 2), p.value = leading.input(x.value, 2);
  p.bias = leading.input(x.bias, 2), p.mask = leading.input(x.mask, 2);
  if (x.dropout_p > 0) p.dropout_seed = leading.input(x.dropout_seed, 0);
  return p;
}

// Tasks are handed out one by one: which thread runs one does not change what it computes.
void execute(const rescaled::Program& program, AttentionParameters& p) {
  const at::DataPtr workspace = c10::GetCPUAllocator()->allocate(program.workspace_bytes);
  p.workspace = workspace.get();
  for (int i = 0; i < program.count; ++i) {
    const rescaled::Step& step = program.steps[i];
    std::atomic<int64_t> next{0};
    const int64_t threads = std::min<int64_t>(at::get_num_threads(), step.tasks);
    at::parallel_for(0, threads, 1, [&](int64_t, int64_t) {
      at::DataPtr scratch;
      for (int64_t task; (task = next.fetch_add(1, std::memory_order_relaxed)) < step.tasks;) {
        if (!scratch) scratch = c10::GetCPUAllocator()->allocate(step.scratch_bytes + 1);
        step.run(p, task, task + 1, scratch.get());
      }
    });
  }
}

Tensor none(const Tensor& like) { return at::empty({0}, like.options()); }

// A gradient computed for every problem of the batch, reduced to the shape of the input it belongs to.
class Gradient {
 public:
  Gradient(bool wanted, const Tensor& input, const std::vector<int64_t>& computed) : input_(input) {
    if (!wanted) return;
    const bool whole = input.sizes() == at::IntArrayRef(computed);
    value_ = at::empty(computed, whole ? input.options() : input.options().dtype(accumulation_type(input)));
  }
  const Tensor& value() const { return value_; }
  Tensor reduced() const {
    if (!value_.defined()) return none(input_);
    return input_.sizes() == value_.sizes() ? value_ : value_.sum_to_size(input_.sizes()).to(input_.scalar_type());
  }

 private:
  Tensor input_, value_;
};

Tensor defined_or(const MaybeTensor& t) { return t.value_or(Tensor()); }

#define POINT_PARAMETERS                                                                                         \
  const Tensor &query, const Tensor &key, const Tensor &value, const MaybeTensor &bias, const MaybeTensor &mask, \
      const MaybeTensor &dropout_seed
#define SAVED_PARAMETERS const Tensor &output, const Tensor &balance, const Tensor &log_normalizer
#define SETTING_PARAMETERS double dropout_p, bool is_causal, std::optional<double> scale, c10::string_view kind
#define TANGENT_PARAMETERS                                                                            \
  const MaybeTensor &tangent_query, const MaybeTensor &tangent_key, const MaybeTensor &tangent_value, \
      const MaybeTensor &tangent_bias
#define COTANGENT_PARAMETERS \
  const MaybeTensor &grad_output, const MaybeTensor &grad_balance, const MaybeTensor &grad_log_normalizer
#define THE_POINT                                                                                                      \
  Point {                                                                                                              \
    query, key, value, defined_or(bias), defined_or(mask), defined_or(dropout_seed), dropout_p, is_causal, scale, kind \
  }
#define LEADING_OF_POINT {&x.query, 2}, {&x.key, 2}, {&x.value, 2}, {&x.bias, 2}, {&x.mask, 2}, {&x.dropout_seed, 0}

std::tuple<Tensor, Tensor, Tensor> attention_forward(POINT_PARAMETERS, SETTING_PARAMETERS) {
  const Point x = THE_POINT;
  const Leading leading({LEADING_OF_POINT}, key, value);
  const int64_t rows = query.size(-2);
  const auto statistics = query.options().dtype(accumulation_type(query));
  Tensor output = at::empty(leading.full({rows, value.size(-1)}), query.options());
  Tensor balance = at::empty(leading.full({rows}), statistics),
         log_normalizer = at::empty(leading.full({rows}), statistics);
  if (!leading.empty()) {
    AttentionParameters p = parameters(x, leading);
    p.output = leading.output(output, 2), p.balance = leading.output(balance, 1),
    p.log_normalizer = leading.output(log_normalizer, 1);
    execute(rescaled::attention_cpu_kernels().forward(p), p);
  }
  return {output, balance, log_normalizer};
}

struct Tangents {
  Tensor query, key, value, bias;
};
struct Cotangents {
  Tensor output, balance, log_normalizer;
};
struct Saved {
  Tensor output, balance, log_normalizer;
};

void set_tangents(AttentionParameters& p, const Leading& leading, const Tangents& t) {
  p.tangent_query = leading.input(t.query, 2), p.tangent_key = leading.input(t.key, 2);
  p.tangent_value = leading.input(t.value, 2), p.tangent_bias = leading.input(t.bias, 2);
}
void set_saved(AttentionParameters& p, const Leading& leading, const Saved& s) {
  p.saved_output = leading.input(s.output, 2), p.saved_balance = leading.input(s.balance, 1),
  p.saved_log_normalizer = leading.input(s.log_normalizer, 1);
}
void set_cotangents(AttentionParameters& p, const Leading& leading, const Cotangents& g) {
  p.grad_output = leading.input(g.output, 2), p.grad_balance = leading.input(g.balance, 1),
  p.grad_log_normalizer = leading.input(g.log_normalizer, 1);
}

// `type` of the tangent of the output: the double backward keeps it in the arithmetic type.
Saved jvp_of(const Point& x, const Leading& leading, const Tangents& tangents, const Saved& saved,
             at::ScalarType type) {
  const int64_t rows = x.query.size(-2);
  const auto statistics = x.query.options().dtype(accumulation_type(x.query));
  Saved out{at::empty(leading.full({rows, x.value.size(-1)}), x.query.options().dtype(type)),
            at::empty(leading.full({rows}), statistics), at::empty(leading.full({rows}), statistics)};
  if (!leading.empty()) {
    AttentionParameters p = parameters(x, leading);
    set_tangents(p, leading, tangents), set_saved(p, leading, saved);
    p.output = leading.output(out.output, 2), p.balance = leading.output(out.balance, 1),
    p.log_normalizer = leading.output(out.log_normalizer, 1);
    execute(rescaled::attention_cpu_kernels().jvp(p), p);
  }
  return out;
}

std::tuple<Tensor, Tensor, Tensor> attention_jvp(TANGENT_PARAMETERS, POINT_PARAMETERS, SAVED_PARAMETERS,
                                                 SETTING_PARAMETERS) {
  const Point x = THE_POINT;
  const Leading leading({LEADING_OF_POINT, {&output, 2}}, key, value);
  const Tangents tangents{defined_or(tangent_query), defined_or(tangent_key), defined_or(tangent_value),
                          defined_or(tangent_bias)};
  const Saved out = jvp_of(x, leading, tangents, {output, balance, log_normalizer}, query.scalar_type());
  return {out.output, out.balance, out.log_normalizer};
}

// The gradients of both backward primitives; `need` for query, key, value, bias.
struct Gradients {
  Gradient query, key, value;
  Tensor bias;
  Gradients(const Point& x, const Leading& leading, std::array<bool, 4> need)
      : query(need[0], x.query, leading.full({x.query.size(-2), x.query.size(-1)})),
        key(need[1], x.key, leading.keys({x.key.size(-2), x.key.size(-1)})),
        value(need[2], x.value, leading.keys({x.value.size(-2), x.value.size(-1)})) {
    if (need[3] && x.bias.defined()) bias = at::empty(x.bias.sizes(), x.bias.options());
  }
  void set(AttentionParameters& p, const Leading& leading) const {
    p.grad_query = leading.output(query.value(), 2), p.grad_key = leading.output(key.value(), 2),
    p.grad_value = leading.output(value.value(), 2);
    p.grad_bias = leading.output(bias, 2);
  }
  void clear() const {  // an empty batch: sums over nothing
    for (const Tensor& t : {query.value(), key.value(), value.value(), bias})
      if (t.defined()) t.zero_();
  }
};

std::tuple<Tensor, Tensor, Tensor, Tensor> attention_backward(COTANGENT_PARAMETERS, POINT_PARAMETERS, SAVED_PARAMETERS,
                                                              SETTING_PARAMETERS, std::array<bool, 4> need) {
  const Point x = THE_POINT;
  const Leading leading({LEADING_OF_POINT, {&output, 2}}, key, value);
  const Gradients gradients(x, leading, need);
  if (leading.empty()) {
    gradients.clear();
  } else {
    AttentionParameters p = parameters(x, leading);
    set_saved(p, leading, {output, balance, log_normalizer});
    set_cotangents(p, leading, {defined_or(grad_output), defined_or(grad_balance), defined_or(grad_log_normalizer)});
    gradients.set(p, leading);
    execute(rescaled::attention_cpu_kernels().backward(p), p);
  }
  return {gradients.query.reduced(), gradients.key.reduced(), gradients.value.reduced(),
          gradients.bias.defined() ? gradients.bias : none(query)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor> attention_double_backward(
    TANGENT_PARAMETERS, COTANGENT_PARAMETERS, POINT_PARAMETERS, SAVED_PARAMETERS, SETTING_PARAMETERS,
    std::array<bool, 7> need) {
  const Point x = THE_POINT;
  const Leading leading({LEADING_OF_POINT, {&output, 2}}, key, value);
  const Tangents tangents{defined_or(tangent_query), defined_or(tangent_key), defined_or(tangent_value),
                          defined_or(tangent_bias)};
  const Saved saved{output, balance, log_normalizer};
  const Saved first = jvp_of(x, leading, tangents, saved, accumulation_type(query));
  const Gradients gradients(x, leading, {need[3], need[4], need[5], need[6]});
  if (leading.empty()) {
    gradients.clear();
  } else if (need[3] || need[4] || need[5] || need[6]) {
    AttentionParameters p = parameters(x, leading);
    set_tangents(p, leading, tangents), set_saved(p, leading, saved);
    set_cotangents(p, leading, {defined_or(grad_output), defined_or(grad_balance), defined_or(grad_log_normalizer)});
    p.jvp_output = leading.input(first.output, 2), p.jvp_balance = leading.input(first.balance, 1),
    p.jvp_log_normalizer = leading.input(first.log_normalizer, 1);
    gradients.set(p, leading);
    execute(rescaled::attention_cpu_kernels().double_backward(p), p);
  }
  const auto wanted = [&](bool is, const Tensor& t) { return is ? t : none(t); };
  return {wanted(need[0], first.output.to(query.scalar_type())),
          wanted(need[1], first.balance),
          wanted(need[2], first.log_normalizer),
          gradients.query.reduced(),
          gradients.key.reduced(),
          gradients.value.reduced(),
          gradients.bias.defined() ? gradients.bias : none(query)};
}

}  // namespace

TORCH_LIBRARY_IMPL(torch_rescaled, CPU, m) {
  m.impl("_attention_forward", TORCH_FN(attention_forward));
  m.impl("_attention_backward", TORCH_FN(attention_backward));
  m.impl("_attention_jvp", TORCH_FN(attention_jvp));
  m.impl("_attention_double_backward", TORCH_FN(attention_double_backward));
}
