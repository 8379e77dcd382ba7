// SPDX-License-Identifier: BSD-3-Clause
// Sums as numbers that travel. Whoever includes it brings what ../sums.h asks for.
#pragma once
#include "../parts.h"
#include "../sums.h"

namespace rescaled::RESCALED_ISA {
namespace {

RESCALED_INLINE void write_sums(const Sums& s, double* to) {
  using Part = RegressionPart;
  to[Part::empty] = s.empty, to[Part::exponent] = s.exponent, to[Part::largest] = s.largest;
  to[Part::center] = s.center, to[Part::u] = s.u, to[Part::absolute] = s.absolute, to[Part::target] = s.target;
  to[Part::residual] = s.residual, to[Part::square] = s.square, to[Part::target_square] = s.target_square;
  to[Part::penalty] = s.penalty;
}
RESCALED_INLINE Sums read_sums(const double* from) {
  using Part = RegressionPart;
  Sums s;
  s.empty = from[Part::empty] != 0, s.exponent = from[Part::exponent], s.largest = from[Part::largest];
  s.center = from[Part::center], s.u = from[Part::u], s.absolute = from[Part::absolute], s.target = from[Part::target];
  s.residual = from[Part::residual], s.square = from[Part::square], s.target_square = from[Part::target_square];
  s.penalty = from[Part::penalty];
  return s;
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
