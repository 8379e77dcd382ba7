// SPDX-License-Identifier: BSD-3-Clause
// The torch-free attention kernels on buffers of exactly their size: what the sanitizers watch. The forward is compared
// with the dense float64 formula, the derivatives with each other: <G, F> along the tangents by JVP and by backward,
// and the symmetry of its Hessian by the double backward. (The derivatives' values are checked from Python.)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(RESCALED_TWIN)
#include "../../csrc/kernels/attention/cuda/attention.h"
#else
#include "../../csrc/kernels/cpu/isa.h"
#endif
#include "../../csrc/kernels/attention/parameters.h"

using namespace rescaled;

namespace {

struct BFloat16 {
  uint16_t bits = 0;
};
struct Float16 {
  _Float16 value = 0;
};
double value_of(double x) { return x; }
double value_of(BFloat16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float y;
  std::memcpy(&y, &bits, 4);
  return y;
}
double value_of(Float16 x) { return static_cast<double>(x.value); }
void assign(float& y, double x) { y = static_cast<float>(x); }
void assign(double& y, double x) { y = x; }
void assign(BFloat16& y, double x) {
  const float f = static_cast<float>(x);
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  y.bits = static_cast<uint16_t>(bits >> 16);
}
void assign(Float16& y, double x) { y.value = static_cast<_Float16>(x); }

// Type in memory: its name, the type of the statistics, and the tolerances of values and statistics.
template <class T>
struct Traits;
template <>
struct Traits<float> {
  using Statistics = float;
  static constexpr DType dtype = DType::float32;
  static constexpr double values = 2e-5, statistics = 2e-5;
};
template <>
struct Traits<double> {
  using Statistics = double;
  static constexpr DType dtype = DType::float64;
  static constexpr double values = 1e-11, statistics = 1e-11;
};
template <>
struct Traits<BFloat16> {
  using Statistics = float;
  static constexpr DType dtype = DType::bfloat16;
  static constexpr double values = 1e-2, statistics = 2e-5;
};
template <>
struct Traits<Float16> {
  using Statistics = float;
  static constexpr DType dtype = DType::float16;
  static constexpr double values = 2e-3, statistics = 2e-5;
};

struct Shape {
  int64_t heads, kv_heads, n, m, d, dv;
};
enum class Bias { none, full, rows, columns, heads };
struct Features {
  Bias bias = Bias::none;
  bool mask = false, causal = false, dropout = false, strided = false;
};

double random_value() { return std::rand() / (RAND_MAX + 1.0) * 2 - 1; }

// [heads, rows, columns] whose last element is the last of its memory; strided: every second column, rows apart.
template <class T>
struct Buffer {
  int64_t heads, rows, columns, column, row, head;
  std::vector<T> memory;
  Buffer(int64_t h, int64_t r, int64_t c, bool strided, bool random = true)
      : heads(h), rows(r), columns(c), column(strided ? 2 : 1), row(c * column + strided), head(r * row) {
    memory.resize((h - 1) * head + (r - 1) * row + (c - 1) * column + 1);
    for (int64_t i = 0; random && i < h * r * c; ++i) assign((*this)[i], random_value());
  }
  int64_t size() const { return heads * rows * columns; }
  int64_t offset(int64_t i) const {
    return i / columns / rows * head + i / columns % rows * row + i % columns * column;
  }
  T& operator[](int64_t i) { return memory[offset(i)]; }
  double operator[](int64_t i) const { return value_of(memory[offset(i)]); }
  double at(int64_t h, int64_t i, int64_t j) const {  // broadcast where a size is 1
    return (*this)[((heads > 1 ? h : 0) * rows + (rows > 1 ? i : 0)) * columns + (columns > 1 ? j : 0)];
  }
};

// As the kernels see it: heads in groups that share keys; stride 0 where broadcast.
template <class Pointer, class T>
Matrices<Pointer> matrices(Buffer<T>& b, int64_t kv_heads) {
  Matrices<Pointer> m;
  m.data = b.memory.data();
  m.dtype = Traits<T>::dtype;
  m.row = b.rows > 1 ? b.row : 0, m.column = b.columns > 1 ? b.column : 0;
  const int64_t group = b.heads / kv_heads;
  if (b.heads > 1) m.batch[0] = std::max<int64_t>(group, 1) * b.head;
  if (group > 1) m.batch[1] = b.head;
  return m;
}

void* aligned(std::vector<char>& memory) {
  return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory.data()) + 63) / 64 * 64);
}

#if !defined(RESCALED_TWIN)
void run(const AttentionProgram& program, AttentionParameters& p) {
  std::vector<char> workspace(program.workspace_bytes + 64);
  p.workspace = aligned(workspace);
  for (int i = 0; i < program.count; ++i) {
    const auto& step = program.steps[i];
    std::vector<char> scratch(step.scratch_bytes + 64);
    step.run(p, 0, step.tasks, aligned(scratch));
  }
}
#endif

// The CPU's kernels; or, with RESCALED_TWIN, the CUDA kernels' source on fibers (csrc/kernels/cuda/twin.h).
void run(Primitive primitive, AttentionParameters& p) {
#if defined(RESCALED_TWIN)
  std::vector<char> workspace(attention_cuda_workspace_bytes(primitive, p) + 64);
  p.workspace = aligned(workspace);
  if (const char* error = attention_cuda_run(primitive, p, nullptr)) {
    std::printf("FAILED: %s\n", error);
    std::exit(1);
  }
#else
  const AttentionKernels& kernels = attention_cpu_kernels();
  const AttentionProgram program = primitive == Primitive::forward    ? kernels.forward(p)
                                   : primitive == Primitive::jvp      ? kernels.jvp(p)
                                   : primitive == Primitive::backward ? kernels.backward(p)
                                                                      : kernels.double_backward(p);
  run(program, p);
#endif
}

double worst = 0;
void compare(const char* what, double got, double expected, double scale, double tolerance) {
  const double error = std::fabs(got - expected) / (scale + 1);
  worst = std::max(worst, error / tolerance);
  if (!(error <= tolerance)) {
    std::printf("FAILED %s: got %.9g, expected %.9g\n", what, got, expected);
    std::exit(1);
  }
}

// Sums of products, and of their sizes.
struct Sum {
  double value = 0, magnitude = 0;
  template <class A, class B>
  void add(const Buffer<A>& a, const Buffer<B>& b) {
    for (int64_t i = 0; i < a.size(); ++i) value += a[i] * b[i], magnitude += std::fabs(a[i] * b[i]);
  }
};

// Forward, JVP, backward and double backward of one problem.
template <class T>
struct Check {
  using Statistics = typename Traits<T>::Statistics;
  struct Vector {  // query, key, value, bias, or their tangents or gradients
    Buffer<T> q, k, v, b;
  };
  struct Outputs {
    Buffer<T> w;
    Buffer<Statistics> rho, l;
  };

  Kind kind;
  Shape s;
  Features f;
  int64_t group = s.heads / s.kv_heads, seed = 0x123456789abcdef;
  const double scale = 0.37;
  AttentionParameters p;
  std::vector<char> mask;
  Vector x = vector();
  Outputs out = outputs(false), g = outputs(true);

  Check(Kind kind, Shape s, Features f) : kind(kind), s(s), f(f), mask(s.n * s.m) {
    for (char& m : mask) m = !f.mask || random_value() > -0.3;
    if (f.mask && s.n > 2) std::fill_n(mask.begin() + 2 * s.m, s.m, 0);  // a row without keys
    p.kind = kind, p.causal = f.causal, p.queries = s.n, p.keys = s.m, p.head_size = s.d, p.value_size = s.dv;
    p.scale = scale;
    p.rank = 2, p.sizes[0] = s.kv_heads, p.sizes[1] = group, p.kv_batches = s.kv_heads, p.group = group;
    p.query = in(x.q), p.key = in(x.k), p.value = in(x.v);
    if (f.bias != Bias::none) p.bias = in(x.b);
    if (f.mask) p.mask.data = mask.data(), p.mask.dtype = DType::boolean, p.mask.row = s.m, p.mask.column = 1;
    if (f.dropout) p.dropout_p = 0.3, p.dropout_seed.data = &seed, p.dropout_seed.dtype = DType::int64;
  }

  Vector vector(bool random = true) const {
    const bool rows = f.bias == Bias::rows, columns = f.bias == Bias::columns, heads = f.bias == Bias::heads;
    return {{s.heads, s.n, s.d, f.strided, random},
            {s.kv_heads, s.m, s.d, f.strided, random},
            {s.kv_heads, s.m, s.dv, f.strided, random},
            {heads ? s.heads : 1, columns ? 1 : s.n, rows ? 1 : s.m, f.strided, random}};
  }
  Outputs outputs(bool random) const {
    return {{s.heads, s.n, s.dv, f.strided, random},
            {s.heads, s.n, 1, f.strided, random},
            {s.heads, s.n, 1, f.strided, random}};
  }
  template <class Element>
  Input in(Buffer<Element>& b) const {
    return matrices<const void*>(b, s.kv_heads);
  }
  template <class Element>
  Output to(Buffer<Element>& b) const {
    return matrices<void*>(b, s.kv_heads);
  }
  Sum dot(const Vector& a, const Vector& b) const {
    Sum sum;
    sum.add(a.q, b.q), sum.add(a.k, b.k), sum.add(a.v, b.v);
    if (f.bias != Bias::none) sum.add(a.b, b.b);
    return sum;
  }

  void write_to(Outputs& o) { p.output = to(o.w), p.balance = to(o.rho), p.log_normalizer = to(o.l); }
  void write_to(Vector& v) {
    p.grad_query = to(v.q), p.grad_key = to(v.k), p.grad_value = to(v.v);
    if (f.bias != Bias::none) p.grad_bias = to(v.b);
  }
  void move_along(Vector& v) {
    p.tangent_query = in(v.q), p.tangent_key = in(v.k), p.tangent_value = in(v.v);
    if (f.bias != Bias::none) p.tangent_bias = in(v.b);
  }

  void forward() {
    write_to(out);
    run(Primitive::forward, p);
    for (int64_t h = 0; h < s.heads && !f.dropout; ++h)
      for (int64_t i = 0; i < s.n; ++i) compare_row(h, i);
    p.saved_output = in(out.w), p.saved_balance = in(out.rho), p.saved_log_normalizer = in(out.l);
  }
  void compare_row(int64_t h, int64_t i) const {
    double c = 0, sum = 0;
    std::vector<double> o(s.dv);
    for (int64_t j = 0; j < s.m; ++j) {
      if (!mask[i * s.m + j] || (f.causal && j > i)) continue;
      double t = 0;
      for (int64_t d = 0; d < s.d; ++d) t += x.q.at(h, i, d) * x.k.at(h / group, j, d);
      t *= scale;
      const double e = f.bias == Bias::none ? 1 : std::exp(x.b.at(h, i, j));
      const double u = e * (kind == Kind::exp ? std::exp(t) : kind == Kind::cosh ? std::cosh(t) : std::sinh(t));
      c += e * (kind == Kind::exp ? std::exp(t) : std::cosh(t)), sum += u;
      for (int64_t d = 0; d < s.dv; ++d) o[d] += u * x.v.at(h / group, j, d);
    }
    if (c == 0 && !(std::isinf(out.l.at(h, i, 0)) && out.l.at(h, i, 0) < 0)) {
      std::printf("FAILED log_normalizer of a row without keys: got %.9g\n", out.l.at(h, i, 0));
      std::exit(1);
    }
    if (c > 0) compare("log_normalizer", out.l.at(h, i, 0), std::log(c), 1, Traits<T>::statistics);
    compare("balance", out.rho.at(h, i, 0), c > 0 ? sum / c : 0, 1, Traits<T>::statistics);
    for (int64_t d = 0; d < s.dv; ++d) compare("output", out.w.at(h, i, d), c > 0 ? o[d] / c : 0, 1, Traits<T>::values);
  }

#if !defined(RESCALED_TWIN)
  // Outputs and tangents of one pass: the outputs to the bit, the tangents as the JVP's.
  void one_pass(Outputs& tangent) {
    Outputs again = outputs(false), moved = outputs(false);
    AttentionParameters both = p;
    both.output = to(again.w), both.balance = to(again.rho), both.log_normalizer = to(again.l);
    both.tangent_output = to(moved.w), both.tangent_balance = to(moved.rho), both.tangent_log_normalizer = to(moved.l);
    run(attention_cpu_kernels().forward_jvp(both), both);
    // bfloat16 by the largest: products of pairs round weights and their tangents, here relative to another number.
    const auto equal = [&](const char* what, auto& a, auto& b, double tolerance) {
      constexpr bool kLargest = std::is_same_v<std::decay_t<decltype(a[0])>, BFloat16>;
      double largest = 0;
      if (kLargest && tolerance > 0)
        for (int64_t i = 0; i < b.size(); ++i) largest = std::max(largest, std::fabs(double{value_of(b[i])}));
      for (int64_t i = 0; i < a.size(); ++i)
        compare(what, value_of(a[i]), value_of(b[i]), kLargest ? largest : std::fabs(value_of(b[i])), tolerance);
    };
    const bool few = s.n <= 4;  // the forward of few queries sums in another order
    equal("output of one pass", again.w, out.w, few ? Traits<T>::values : 0);
    equal("balance of one pass", again.rho, out.rho, few ? Traits<T>::statistics : 0);
    equal("tangent of one pass", moved.w, tangent.w, Traits<T>::values);
    equal("tangent of the balance of one pass", moved.rho, tangent.rho, Traits<T>::statistics);
    equal("tangent of the log_normalizer of one pass", moved.l, tangent.l, Traits<T>::statistics);
  }
#endif

  void derivatives() {
    p.grad_output = in(g.w), p.grad_balance = in(g.rho), p.grad_log_normalizer = in(g.l);
    Vector gradient = vector(false), along = vector(), other = vector();
    write_to(gradient);
    run(Primitive::backward, p);
    const Sum backward = dot(gradient, along);

    Outputs tangent = outputs(false);
    const auto double_backward = [&](Vector& direction) {
      move_along(direction);
      write_to(tangent);
      run(Primitive::jvp, p);
#if !defined(RESCALED_TWIN)
      one_pass(tangent);
#endif
      p.jvp_output = in(tangent.w), p.jvp_balance = in(tangent.rho), p.jvp_log_normalizer = in(tangent.l);
      run(Primitive::double_backward, p);
    };
    double_backward(along);
    Sum jvp;
    jvp.add(g.w, tangent.w), jvp.add(g.rho, tangent.rho), jvp.add(g.l, tangent.l);
    compare("JVP against backward", jvp.value, backward.value, backward.magnitude, Traits<T>::values);
    const Sum left = dot(gradient, other);
    double_backward(other);
    const Sum right = dot(gradient, along);
    compare("symmetry of the double backward", left.value, right.value, left.magnitude, Traits<T>::values);
  }
};

int cases = 0;
template <class T>
void check(Kind kind, Shape s, Features f) {
  Check<T> c(kind, s, f);
  c.forward();
  c.derivatives();
  ++cases;
}

}  // namespace

int main() {
  for (const Kind kind : {Kind::exp, Kind::cosh, Kind::sinh})
    for (const Shape s : {Shape{1, 1, 1, 1, 1, 1}, Shape{2, 1, 7, 5, 3, 2}, Shape{2, 2, 53, 129, 17, 9},
                          Shape{4, 2, 100, 65, 8, 16}, Shape{1, 1, 3, 300, 33, 1}, Shape{2, 1, 19, 40, 150, 140},
                          Shape{2, 1, 5, 800, 9, 7}, Shape{2, 1, 3, 1100, 9, 20}, Shape{2, 1, 70, 150, 72, 100}})
      for (const Features f :
           {Features{}, Features{.bias = Bias::full}, Features{.mask = true, .causal = true},
            Features{.bias = Bias::full, .mask = true, .dropout = true}, Features{.bias = Bias::rows, .strided = true},
            Features{.bias = Bias::columns, .causal = true, .strided = true},
            Features{.bias = Bias::heads, .mask = true, .strided = true}}) {
#if defined(RESCALED_TWIN)  // slow: the element types take turns
        static int turn = 0;
        if (std::getenv("RESCALED_TWIN_WARPGROUPS") != nullptr) {  // they serve 16-bit elements and more than 32 rows
          if (s.n > 32 && turn % 2 == 0) turn % 4 == 0 ? check<BFloat16>(kind, s, f) : check<Float16>(kind, s, f);
        } else {
          if (turn % 4 == 0) check<float>(kind, s, f);
          if (turn % 4 == 1) check<BFloat16>(kind, s, f);
          if (turn % 4 == 2) check<double>(kind, s, f);
          if (turn % 4 == 3) check<Float16>(kind, s, f);
        }
        ++turn;
#else
        check<float>(kind, s, f), check<double>(kind, s, f);
        check<BFloat16>(kind, s, f), check<Float16>(kind, s, f);
#endif
      }
#if defined(RESCALED_TWIN)
  const char* isa = "twin";
#else
  const char* isa = cpu_isa_name();
#endif
  std::printf("ok: %d cases, isa %s, worst error %.2f of the tolerance\n", cases, isa, worst);
}
