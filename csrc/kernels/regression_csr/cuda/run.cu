// SPDX-License-Identifier: BSD-3-Clause
// The passes as sequences of kernels on one stream.
#include "fixed.cuh"
#include "passes.cuh"

namespace rescaled {
namespace {

constexpr int64_t kWork = 4096;        // values and rows of a block
constexpr int64_t kMostChunks = 1024;  // about as many blocks as a large GPU holds at once

struct Plans {
  WalkPlan walk;
  int64_t bytes = 0, cleared = 0, gram = 0;  // cleared: from the start, before each sum
  Plans(CsrPass pass, const CsrParameters& p) {
    const int64_t mean = p.rows == 0 ? 0 : p.nonzeros / p.rows, work = p.nonzeros + p.rows;
    while (walk.lanes < 32 && 4 * walk.lanes < mean) walk.lanes *= 2;
    if (pass == CsrPass::matvec) return;
    const bool is_curvature = pass == CsrPass::curvature;
    const int64_t wanted = (work + kWork - 1) / kWork;
    walk.chunks = wanted < 1 ? 1 : wanted > kMostChunks ? kMostChunks : wanted;
    walk.chunk_rows = (p.rows + walk.chunks - 1) / walk.chunks;
    walk.room = logarithm(p.nonzeros);
    const int64_t numbers = p.batches * p.columns * (is_curvature ? kMostVectors : width_of(vectors(p)));
    walk.longest = take(4 * p.batches), walk.codes = take(4 * numbers);
    walk.sums = take(8 * numbers * words_of(p.A.dtype));
    cleared = bytes;
    walk.wrong = take(4 * p.batches);
    if (!is_curvature) return;
    walk.sides = take(8 * 3 * p.batches * p.columns);
    gram = take(16 * p.batches * p.columns * p.columns);
  }
  static int vectors(const CsrParameters& p) {
    return p.weights_count < kMostVectors ? static_cast<int>(p.weights_count) : kMostVectors;
  }

 private:
  int64_t take(int64_t size) {
    const int64_t at = bytes;
    bytes += (size + 15) / 16 * 16;
    return at;
  }
};

// What columns' sums `source` asks for, without the last step of the diagonal's.
const char* run_sums(const CsrParameters& p, const Plans& plans, WalkPlan walk, Source source, void* stream) {
  const char* error = csr_clear(p, 0, plans.cleared, stream);
  if (error == nullptr) error = csr_bounds(p, walk, source, stream);
  return error != nullptr || source == Source::diagonal ? error : csr_sums(p, walk, source, stream);
}

const char* run_transposed(const CsrParameters& p, const Plans& plans, void* stream) {
  const char* error = csr_clear(p, plans.walk.wrong, 4 * p.batches, stream);
  WalkPlan walk = plans.walk;
  walk.squared = p.squared;
  for (; error == nullptr && walk.first < p.weights_count; walk.first += kMostVectors) {
    const int64_t left = p.weights_count - walk.first;
    walk.vectors = left < kMostVectors ? static_cast<int>(left) : kMostVectors;
    error = run_sums(p, plans, walk, Source::given, stream);
  }
  return error;
}

const char* run_curvature(const CsrParameters& p, const Plans& plans, void* stream) {
  WalkPlan walk = plans.walk;
  const char* error = csr_clear(p, walk.wrong, plans.bytes - walk.wrong, stream);
  walk.vectors = 3;
  if (error == nullptr) error = run_sums(p, plans, walk, Source::sides, stream);
  walk.vectors = 1, walk.resident = walk.squared = true, walk.first = RegressionRows::noise;
  if (error == nullptr) error = run_sums(p, plans, walk, Source::given, stream);
  walk.first = 0;
  if (error == nullptr) error = run_sums(p, plans, walk, Source::diagonal, stream);
  return error != nullptr ? error : csr_gram(p, walk, plans.gram, stream);
}

}  // namespace

int64_t csr_cuda_workspace_bytes(CsrPass pass, const CsrParameters& p) { return Plans(pass, p).bytes; }

const char* csr_cuda_run(CsrPass pass, const CsrParameters& p, void* stream) {
  const Plans plans(pass, p);
  switch (pass) {
    case CsrPass::matvec:
      return csr_matvec(p, plans.walk, stream);
    case CsrPass::transposed:
      return run_transposed(p, plans, stream);
    default:
      return run_curvature(p, plans, stream);
  }
}

}  // namespace rescaled
