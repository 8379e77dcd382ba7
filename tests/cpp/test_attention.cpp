// SPDX-License-Identifier: BSD-3-Clause
// The torch-free attention kernels against dense float64 formulas, on exact-size buffers: what the sanitizers watch.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "../../csrc/kernels/attention/parameters.h"
#include "../../csrc/kernels/cpu/isa.h"

using namespace rescaled;

namespace {

struct Shape {
  int64_t heads, kv_heads, n, m, d, dv;
};
struct Features {
  bool bias = false, mask = false, causal = false, dropout = false;
};

double random_value() { return std::rand() / (RAND_MAX + 1.0) * 2 - 1; }

// One buffer of float or double, [heads, rows, columns], of exactly its size.
template <class T>
struct Buffer {
  int64_t heads, rows, columns;
  std::vector<T> data;
  Buffer(int64_t h, int64_t r, int64_t c, bool random = true) : heads(h), rows(r), columns(c), data(h * r * c) {
    if (random)
      for (T& x : data) x = static_cast<T>(random_value());
  }
  double at(int64_t h, int64_t i, int64_t j) const { return data[((h % heads) * rows + i) * columns + j]; }
  template <class Pointer>
  Matrices<Pointer> matrices(bool per_group) {
    Matrices<Pointer> m;
    m.data = data.data();
    m.dtype = sizeof(T) == 4 ? DType::float32 : DType::float64;
    m.row = columns, m.column = 1;
    m.batch[0] = per_group ? rows * columns : rows * columns * (heads > 1 ? 1 : 0);
    return m;
  }
};

void run(const Program& program, AttentionParameters& p) {
  std::vector<char> workspace(program.workspace_bytes + 64);
  p.workspace = reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(workspace.data()) + 63) / 64 * 64);
  for (int i = 0; i < program.count; ++i) {
    const Step& step = program.steps[i];
    std::vector<char> scratch(step.scratch_bytes + 64);
    step.run(p, 0, step.tasks, reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(scratch.data()) + 63) / 64 * 64));
  }
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

// Forward, backward, JVP and double backward of one head group at a time; derivatives against central differences of
// the dense formula (which checks them from a second source).
template <class T>
void check(Kind kind, Shape s, Features f) {
  Buffer<T> q(s.heads, s.n, s.d), k(s.kv_heads, s.m, s.d), v(s.kv_heads, s.m, s.dv), bias(1, s.n, s.m);
  Buffer<T> tq(s.heads, s.n, s.d), tk(s.kv_heads, s.m, s.d), tv(s.kv_heads, s.m, s.dv), tb(1, s.n, s.m),
      g(s.heads, s.n, s.dv), gl(s.heads, s.n, 1);
  std::vector<char> mask(s.n * s.m);
  for (char& x : mask) x = !f.mask || random_value() > -0.3;
  if (f.mask && s.n > 2)
    for (int64_t j = 0; j < s.m; ++j) mask[2 * s.m + j] = 0;  // a row without keys
  const double scale = 0.37;
  const int64_t group = s.heads / s.kv_heads;

  AttentionParameters p;
  p.kind = kind, p.causal = f.causal, p.queries = s.n, p.keys = s.m, p.head_size = s.d, p.value_size = s.dv,
  p.scale = scale;
  p.rank = 2, p.sizes[0] = s.kv_heads, p.sizes[1] = group, p.kv_batches = s.kv_heads, p.group = group;
  const auto per_head = [&](auto& m, auto& b) {
    m.batch[0] = group * b.rows * b.columns, m.batch[1] = b.rows * b.columns;
  };
  const auto input = [&](Buffer<T>& b, bool heads) {
    Input m = b.template matrices<const void*>(true);
    if (heads) per_head(m, b);
    return m;
  };
  const auto output = [&](Buffer<T>& b, bool heads) {
    Output m = b.template matrices<void*>(true);
    if (heads) per_head(m, b);
    return m;
  };
  p.query = input(q, true), p.key = input(k, false), p.value = input(v, false);
  if (f.bias) p.bias = bias.template matrices<const void*>(false), p.bias.batch[0] = 0;
  if (f.mask) p.mask.data = mask.data(), p.mask.dtype = DType::boolean, p.mask.row = s.m, p.mask.column = 1;
  int64_t seed = 0x123456789abcdef;
  if (f.dropout) p.dropout_p = 0.3, p.dropout_seed.data = &seed, p.dropout_seed.dtype = DType::int64;

  Buffer<T> w(s.heads, s.n, s.dv, false), rho(s.heads, s.n, 1, false), l(s.heads, s.n, 1, false);
  p.output = output(w, true), p.balance = output(rho, true), p.log_normalizer = output(l, true);
  run(attention_cpu_kernels().forward(p), p);

  const double tolerance = sizeof(T) == 4 ? 2e-5 : 1e-11;
  const auto attends = [&](int64_t i, int64_t j) { return mask[i * s.m + j] && (!f.causal || j <= i); };
  for (int64_t h = 0; h < s.heads && !f.dropout; ++h)
    for (int64_t i = 0; i < s.n; ++i) {
      double c = 0, sum = 0;
      std::vector<double> o(s.dv);
      for (int64_t j = 0; j < s.m; ++j) {
        if (!attends(i, j)) continue;
        double t = 0;
        for (int64_t d = 0; d < s.d; ++d) t += q.at(h, i, d) * k.at(h / group, j, d);
        t *= scale;
        const double e = f.bias ? std::exp(bias.at(0, i, j)) : 1;
        const double u = e * (kind == Kind::exp ? std::exp(t) : kind == Kind::cosh ? std::cosh(t) : std::sinh(t));
        c += e * (kind == Kind::exp ? std::exp(t) : std::cosh(t)), sum += u;
        for (int64_t d = 0; d < s.dv; ++d) o[d] += u * v.at(h / group, j, d);
      }
      compare("log_normalizer", c > 0 ? l.at(h, i, 0) : 0, c > 0 ? std::log(c) : 0, 1, tolerance);
      compare("balance", rho.at(h, i, 0), c > 0 ? sum / c : 0, 1, tolerance);
      for (int64_t d = 0; d < s.dv; ++d) compare("output", w.at(h, i, d), c > 0 ? o[d] / c : 0, 1, tolerance);
    }

  // <G, F> along the tangents, three ways: the backward's gradients, the JVP, and (second order) the symmetry of the
  // double backward.
  p.saved_output = input(w, true), p.saved_balance = input(rho, true), p.saved_log_normalizer = input(l, true);
  p.grad_output = input(g, true), p.grad_log_normalizer = input(gl, true);
  Buffer<T> dq(s.heads, s.n, s.d, false), dk(s.kv_heads, s.m, s.d, false), dv(s.kv_heads, s.m, s.dv, false),
      db(1, s.n, s.m, false);
  p.grad_query = output(dq, true), p.grad_key = output(dk, false), p.grad_value = output(dv, false);
  if (f.bias) p.grad_bias = db.template matrices<void*>(false), p.grad_bias.batch[0] = 0;
  run(attention_cpu_kernels().backward(p), p);
  double along = 0, magnitude = 0;
  const auto dot = [&](const Buffer<T>& a, const Buffer<T>& b) {
    double sum = 0;
    for (size_t i = 0; i < a.data.size(); ++i)
      sum += double{a.data[i]} * b.data[i], magnitude += std::fabs(double{a.data[i]} * b.data[i]);
    return sum;
  };
  along = dot(dq, tq) + dot(dk, tk) + dot(dv, tv) + (f.bias ? dot(db, tb) : 0);

  const auto tangents = [&](Buffer<T>& a, Buffer<T>& b, Buffer<T>& c, Buffer<T>& e) {
    p.tangent_query = input(a, true), p.tangent_key = input(b, false), p.tangent_value = input(c, false);
    if (f.bias) p.tangent_bias = e.template matrices<const void*>(false), p.tangent_bias.batch[0] = 0;
  };
  Buffer<T> jw(s.heads, s.n, s.dv, false), jr(s.heads, s.n, 1, false), jl(s.heads, s.n, 1, false);
  const auto jvp = [&] {
    p.output = output(jw, true), p.balance = output(jr, true), p.log_normalizer = output(jl, true);
    run(attention_cpu_kernels().jvp(p), p);
    p.jvp_output = input(jw, true), p.jvp_balance = input(jr, true), p.jvp_log_normalizer = input(jl, true);
  };
  tangents(tq, tk, tv, tb);
  jvp();
  double forward = 0;
  for (size_t i = 0; i < g.data.size(); ++i) forward += double{g.data[i]} * jw.data[i];
  for (size_t i = 0; i < gl.data.size(); ++i) forward += double{gl.data[i]} * jl.data[i];
  compare("JVP against backward", forward, along, magnitude, tolerance);

  run(attention_cpu_kernels().double_backward(p), p);
  Buffer<T> uq(s.heads, s.n, s.d), uk(s.kv_heads, s.m, s.d), uv(s.kv_heads, s.m, s.dv), ub(1, s.n, s.m);
  magnitude = 0;
  const double left = dot(dq, uq) + dot(dk, uk) + dot(dv, uv) + (f.bias ? dot(db, ub) : 0);
  tangents(uq, uk, uv, ub);
  jvp();
  run(attention_cpu_kernels().double_backward(p), p);
  const double right = dot(dq, tq) + dot(dk, tk) + dot(dv, tv) + (f.bias ? dot(db, tb) : 0);
  compare("symmetry of the double backward", left, right, magnitude, tolerance);
}

}  // namespace

int main() {
  int cases = 0;
  for (const Kind kind : {Kind::exp, Kind::cosh, Kind::sinh})
    for (const Shape s : {Shape{1, 1, 1, 1, 1, 1}, Shape{2, 1, 7, 5, 3, 2}, Shape{2, 2, 53, 129, 17, 9},
                          Shape{4, 2, 100, 65, 8, 16}, Shape{1, 1, 3, 300, 33, 1}})
      for (const Features f : {Features{}, Features{true, false, false, false}, Features{false, true, true, false},
                               Features{true, true, false, true}}) {
        check<float>(kind, s, f), check<double>(kind, s, f);
        cases += 2;
      }
  std::printf("ok: %d cases, isa %s, worst error %.2f of the tolerance\n", cases, cpu_isa_name(), worst);
}
