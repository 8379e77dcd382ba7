// SPDX-License-Identifier: BSD-3-Clause
// The plans of the CUDA kernels (csrc/kernels/attention/cuda/plan.h): what fits where, and that every row has its
// block.
#include <cstdio>
#include <cstdlib>
#include <initializer_list>

#include "../../csrc/kernels/attention/cuda/plan.h"
#include "../../csrc/kernels/element.h"

using namespace rescaled;

namespace {

int checks = 0;
void expect(bool holds, const char* what, int64_t size, int pass, int64_t limit, int element) {
  ++checks;
  if (holds) return;
  std::printf("FAILED %s: head size %lld, pass %d, %lld bytes of shared memory, elements of %d bytes\n", what,
              static_cast<long long>(size), pass, static_cast<long long>(limit), element);
  std::exit(1);
}

AttentionParameters problem(int64_t batches, int64_t queries, int64_t keys, int64_t size) {
  static const double there = 0;
  AttentionParameters p;
  p.rank = 1, p.sizes[0] = batches, p.kv_batches = batches;
  p.queries = queries, p.keys = keys, p.head_size = p.value_size = size;
  for (Input* m : {&p.query, &p.key, &p.value, &p.grad_output, &p.tangent_query, &p.tangent_key, &p.tangent_value})
    m->data = &there;
  return p;
}

constexpr Pass kPasses[] = {Pass::forward, Pass::jvp,        Pass::query, Pass::query_second,
                            Pass::key,     Pass::key_second, Pass::bias,  Pass::bias_second};
// A block's shared memory: the least of any GPU, 8.6 and 8.9, 8.0, 9.0.
constexpr int64_t kLimits[] = {48 << 10, 99 << 10, 163 << 10, 227 << 10};

template <class T>
void check(Kind kind, bool has_groups) {
  const int element = sizeof(T);
  for (const Pass pass : kPasses)
    for (const int64_t limit : kLimits)
      for (const int64_t size : {1, 16, 40, 64, 128, 200, 256, 512, 4096, 1 << 28}) {
        AttentionParameters p = problem(3, 1000, 700, size);
        p.kind = kind;
        const Plan plan = plan_of<T>(p, pass, {limit, has_groups});
        const bool grouped = group_size(plan.path) > 0;
        const int number = static_cast<int>(pass);
        const auto holds = [&](bool is, const char* what) { expect(is, what, size, number, limit, element); };
        holds(plan.shared_bytes <= limit, "the plan fits into shared memory");
        holds(plan.warps >= 1 && plan.warps <= kMaxWarps, "warps that the kernel allows");
        holds(plan.stages == 1 || (plan.stages == 2 && plan.path != Path::blocked), "stages");
        if (has_groups && element == 2 && size <= 128 && limit == kLimits[3] && !is_bias(pass))
          holds(grouped && plan.warps == kMaxWarps && group_size(plan.path) >= size, "two warpgroups on 9.0");
        const int64_t rows = by_keys(pass) ? p.keys : p.queries;
        holds(plan.row_blocks * kWarpRows * plan.warps >= rows, "every row has its block");
        holds((plan.row_blocks - 1) * kWarpRows * plan.warps < rows, "no block is without a row");
        const int64_t made = plan.output_chunks * output_columns<T>(plan.path);
        holds(is_bias(pass) || made >= size, "every column of the output is made");
        // What the tensor cores are to be fed well for: 16-bit elements to head size 256, float32 to 128.
        if (limit >= 163 << 10 && ((element == 2 && size <= 256) || (element == 4 && size <= 128)))
          holds(plan.path != Path::blocked && plan.warps >= 2, "resident operands and two warps on 8.0 and 9.0");
        if (element == 2 && size <= 128 && limit >= 163 << 10)
          holds(plan.warps >= 4 && plan.stages == 2, "four warps and two stages on 8.0 and 9.0");
        const Layout l = layout_of<T>(p, pass, plan);
        const int aligned = grouped ? kProblemBytes : 16;
        for (int i = 0; i < kOperands; ++i)
          for (const int at : {l.row[i], l.column[i]})
            holds(at < 0 || (at * element % aligned == 0 && at < l.elements),
                  "tiles aligned to a copy, inside the memory");
        holds(l.stage * element % aligned == 0 && l.numbers * element % 16 == 0, "stages aligned to a copy");
      }
}

void check_splits() {
  const auto splits = [](int64_t batches, int64_t queries, int64_t keys, bool causal = false) {
    AttentionParameters p = problem(batches, queries, keys, 64);
    p.causal = causal;
    return key_splits(p);
  };
  expect(splits(1, 1, 65536) == 64, "one query, many keys: the most splits", 64, 0, 0, 2);
  expect(splits(8, 1, 4096) == 16, "256 keys each, and about 128 blocks", 64, 0, 0, 2);
  expect(splits(1, 1, 511) == 1, "few keys are not split", 64, 0, 0, 2);
  expect(splits(64, 1, 65536) == 1, "many problems are not split", 64, 0, 0, 2);
  expect(splits(1, 8192, 8192) == 1, "many queries are not split", 64, 0, 0, 2);
  expect(splits(1, 1, 65536, true) == 1, "a causal query meets few keys", 64, 0, 0, 2);
}

}  // namespace

int main() {
  for (const Kind kind : {Kind::exp, Kind::cosh}) {
    check<BFloat16>(kind, true), check<BFloat16>(kind, false);
    check<Float16>(kind, true), check<float>(kind, true), check<double>(kind, true);
  }
  check_splits();
  std::printf("ok: %d checks\n", checks);
}
