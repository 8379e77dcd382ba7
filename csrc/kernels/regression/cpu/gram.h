// SPDX-License-Identifier: BSD-3-Clause
// The lower triangle of A^T diag(D) A by register tiles.
#pragma once
#include "../../cpu/tile.h"
#include "pass.h"

namespace rescaled::RESCALED_ISA {
namespace {

// Rows at a time: a panel of 3 vectors, 12 KB, and the lines of A it meets stay in the first-level cache.
constexpr int64_t kGramRows = 128;
template <class T>
inline constexpr int64_t kPanelLanes = kTileVectors * kLanes<T>;

// panel = diag(D) A[:, first column + lanes), zero beyond the last column.
template <class T>
static void fill_panel(Rows<T> a, int64_t count, int64_t first, int64_t columns, const T* diagonal, T* panel) {
  const int64_t lanes = columns - first < kPanelLanes<T> ? columns - first : kPanelLanes<T>;
  for (int64_t i = 0; i < count; ++i) {
    const T* const row = a.data + i * a.ld + first;
    T* const to = panel + i * kPanelLanes<T>;
    const T d = diagonal[i];
    for (int64_t j = 0; j < lanes; ++j) to[j] = d * row[j];
    for (int64_t j = lanes; j < kPanelLanes<T>; ++j) to[j] = T(0);
  }
}

// Stored by panels of columns, each [padded rows][lanes], from the diagonal on.
template <class T>
struct Triangle {
  int64_t columns, panels, padded;  // columns padded to whole tiles
  explicit Triangle(int64_t d)
      : columns(d), panels((d + kPanelLanes<T> - 1) / kPanelLanes<T>), padded(round_up(d, kTileRows)) {}
  int64_t panel_size() const { return padded * kPanelLanes<T>; }
  int64_t size() const { return panels * panel_size(); }
  int64_t index(int64_t i, int64_t j) const {  // of row i, column j <= i
    return (j / kPanelLanes<T> * padded + i) * kPanelLanes<T> + j % kPanelLanes<T>;
  }
  // gram += of at most kGramRows rows, in panels [first, last); `gram` begins with the first of them. Rows of `a` are
  // `padded` wide, whatever stands beyond the last column. `panel`: scratch [kGramRows][lanes].
  void add(Rows<T> a, int64_t count, const T* diagonal, int64_t first, int64_t last, T* panel, T* gram) const {
    for (int64_t k = first; k < last; ++k, gram += panel_size()) {
      const int64_t column = k * kPanelLanes<T>;
      fill_panel<T>(a, count, column, columns, diagonal, panel);
      for (int64_t i = column / kTileRows * kTileRows; i < padded; i += kTileRows) {
        Tile<T, kTileRows, kTileVectors> c;
        tile_load<T, kTileRows, kTileVectors>(c, gram + i * kPanelLanes<T>, kPanelLanes<T>);
        multiply<T, kTileRows, kTileVectors, true>(count, a.data + i, a.ld, panel, kPanelLanes<T>, c);
        tile_store<T, kTileRows, kTileVectors>(c, gram + i * kPanelLanes<T>, kPanelLanes<T>);
      }
    }
  }
};

}  // namespace
}  // namespace rescaled::RESCALED_ISA
