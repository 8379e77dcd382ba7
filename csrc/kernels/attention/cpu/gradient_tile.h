// SPDX-License-Identifier: BSD-3-Clause
// One block of scores of the backward and of the double backward's second pass: rows are queries, lanes are keys.
//
//   (3)  dS = r E - n delta,  dbeta = a E - p delta,  E = G V^T + g_rho
//   (5)  ad = r Sd + a (betad - ld),  rd = a Sd + r (betad - ld),  (nd, pd) = (ad, rd) for sinh, else (rd, ad),
//        dS2 = rd E + r Ed - nd delta - n deltad,  dbeta2 = ad E + a Ed - pd delta - p deltad,  Ed = G Vd^T
//        (docs/math.md)
#pragma once
#include "../../cpu/arena.h"
#include "block.h"

namespace rescaled::RESCALED_ISA {
namespace {

template <class T>
inline constexpr int64_t kPanel = kTileVectors * kLanes<T>;  // keys of a panel

// What a row needs, one array [queries, padded to kTileRows] each; rows of padding have weight 0.
enum RowArray { kShift, kExponent, kFactor, kGradBalance, kDelta, kTangentNormalizer, kTangentDelta, kRowArrays };
template <class T>
struct RowData {
  const T* base;
  int64_t stride;
  const T* operator[](RowArray a) const { return base + a * stride; }
};

template <class T>
struct TileInput {
  Rows<T> query, tangent_query, grad_output;           // packed rows; query and its tangent times scale log2(e)
  const T *key, *value, *tangent_key, *tangent_value;  // packed panels [depth][lanes], absent: nullptr
  const T *weights, *bias_tangents, *dropout;          // [rows][lanes], absent: nullptr
};
template <class T>
struct TileOutput {
  T *value_weights, *score_gradient, *tangent_score_gradient;  // a or ad; dS or dS2; dS of the double backward
  T* bias_gradient;                                            // if set, only this is written
};

template <class T>
RESCALED_INLINE void product(int64_t depth, Rows<T> a, int64_t row, const T* b, Tile<T, kTileRows, kTileVectors>& c) {
  multiply<T, kTileRows, kTileVectors, false>(depth, a.data + row * a.ld, a.ld, b, kPanel<T>, c);
}

// Products of kTileRows rows, kept in the first-level cache until all are there.
template <class T>
struct TileProducts {
  alignas(64) T score[kTileRows * kPanel<T>], tangent[kTileRows * kPanel<T>], e[kTileRows * kPanel<T>],
      tangent_e[kTileRows * kPanel<T>];
};

template <class T, bool kSecond>
RESCALED_INLINE void tile_products(const AttentionParameters& p, const TileInput<T>& in, int64_t row,
                                   TileProducts<T>& products) {
  Tile<T, kTileRows, kTileVectors> c;
  const auto clear = [&] { tile_clear<T, kTileRows, kTileVectors>(c); };
  const auto keep = [&](T* to) { tile_store<T, kTileRows, kTileVectors>(c, to, kPanel<T>); };
  clear();
  product(p.head_size, in.query, row, in.key, c);
  keep(products.score);
  if constexpr (kSecond) {
    clear();
    if (in.tangent_query.data) product(p.head_size, in.tangent_query, row, in.key, c);
    if (in.tangent_key) product(p.head_size, in.query, row, in.tangent_key, c);
    keep(products.tangent);
  }
  clear();
  if (in.grad_output.data) product(p.value_size, in.grad_output, row, in.value, c);
  keep(products.e);
  if constexpr (kSecond) {
    clear();
    if (in.grad_output.data && in.tangent_value) product(p.value_size, in.grad_output, row, in.tangent_value, c);
    keep(products.tangent_e);
  }
}

template <class T, bool kTwoSided, bool kSecond>
RESCALED_INLINE void tile_gradients(bool odd_kind, const TileInput<T>& in, RowData<T> rows, int64_t row,
                                    const TileProducts<T>& products, const TileOutput<T>& out) {
  for (int r = 0; r < kTileRows; ++r) {
    const int64_t i = row + r;
    const Vec<T> shift = broadcast(rows[kShift][i]), grad_balance = broadcast(rows[kGradBalance][i]),
                 delta = broadcast(rows[kDelta][i]);
    RESCALED_UNROLL for (int j = 0; j < kTileVectors; ++j) {
      const int64_t at = r * kPanel<T> + j * kLanes<T>, to = row * kPanel<T> + at;
      const Vec<T> t = load(products.score + at);
      Vec<T> even, odd;
      if constexpr (!kTwoSided) {
        even = odd = exp2_vector<T>(in.weights ? (t + load(in.weights + to)) - shift : t - shift);
      } else {
        const Weight<T> weight = in.weights ? split_weight<T>(load(in.weights + to) - shift)
                                            : Weight<T>{broadcast(rows[kExponent][i]), broadcast(rows[kFactor][i])};
        two_sided<T>(t, weight.exponent, even, odd);
        even *= weight.factor, odd *= weight.factor;
      }
      const Vec<T> a = kTwoSided && odd_kind ? odd : even, s = kTwoSided && odd_kind ? even : odd;  // s = du/ds / c
      const Vec<T> drop = in.dropout ? load(in.dropout + to) : broadcast(T(1));
      const Vec<T> e = load(products.e + at) * drop + grad_balance;
      const Vec<T> score_gradient = kTwoSided ? s * e - odd * delta : a * (e - delta);  // n = odd, p = even
      if constexpr (!kSecond) {
        if (out.bias_gradient) {
          store<T>(out.bias_gradient + to, kTwoSided ? a * e - even * delta : score_gradient);
        } else {
          store<T>(out.value_weights + to, a * drop);
          store<T>(out.score_gradient + to, score_gradient);
        }
      } else {
        const Vec<T> sd = load(products.tangent + at) * T(kLn2), ed = load(products.tangent_e + at) * drop,
                     tangent_delta = broadcast(rows[kTangentDelta][i]);
        Vec<T> y = -broadcast(rows[kTangentNormalizer][i]);
        if (in.bias_tangents) y += load(in.bias_tangents + to);
        Vec<T> ad, second, bias;
        if constexpr (!kTwoSided) {
          ad = a * (sd + y);
          second = bias = ad * (e - delta) + a * (ed - tangent_delta);
        } else {
          ad = s * sd + a * y;
          const Vec<T> rd = a * sd + s * y, nd = odd_kind ? ad : rd, pd = odd_kind ? rd : ad;
          second = rd * e + s * ed - nd * delta - odd * tangent_delta;
          bias = ad * e + a * ed - pd * delta - even * tangent_delta;
        }
        if (out.bias_gradient) {
          store<T>(out.bias_gradient + to, bias);
        } else {
          store<T>(out.value_weights + to, ad * drop);
          store<T>(out.score_gradient + to, second);
          store<T>(out.tangent_score_gradient + to, score_gradient);
        }
      }
    }
  }
}

// Rows [first, rows) of a block; `first` is a multiple of kTileRows.
template <class T, bool kTwoSided, bool kSecond>
static __attribute__((noinline)) void gradient_block(const AttentionParameters& p, int64_t first, int64_t rows,
                                                     const TileInput<T>& in, RowData<T> row_data,
                                                     const TileOutput<T>& out) {
  TileProducts<T> products;
  for (int64_t i = first; i < rows; i += kTileRows) {
    tile_products<T, kSecond>(p, in, i, products);
    tile_gradients<T, kTwoSided, kSecond>(p.kind == Kind::sinh, in, row_data, i, products, out);
  }
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
