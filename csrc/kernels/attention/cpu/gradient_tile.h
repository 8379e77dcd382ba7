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

// What a row needs, one array [queries, padded to kTileRows] each; rows of padding have weight 0.
enum RowArray { kShift, kExponent, kFactor, kGradBalance, kDelta, kTangentNormalizer, kTangentDelta, kRowArrays };
template <class T>
struct RowData {
  const T* base;
  int64_t stride;
  const T* operator[](RowArray a) const { return base + a * stride; }
};

template <class E, class T = Sum<E>>
struct TileInput {
  Rows<E> query, tangent_query, grad_output;           // packed rows; query and its tangent times packed_scale
  T score_factor, tangent_factor;                      // score_scale, tangent_scale
  const E *key, *value, *tangent_key, *tangent_value;  // packed panels [depth][lanes], absent: nullptr
  const T *weights, *bias_tangents, *dropout;          // [rows][lanes], absent: nullptr
  bool narrow;                                         // at most kNarrow vectors of keys
};
// Blocks [rows][kPanel], from the first row that is computed on; the products are computed where their results go.
template <class T>
struct TileOutput {
  T* value_weights;           // the scores, then a or ad
  T* score_gradient;          // E, then dS or dS2; dbeta or dbeta2 where only that is wanted
  T* tangent_score_gradient;  // the scores' tangents, then dS of the double backward
  T* tangent_e;               // Ed
  bool bias_only;
};

// The products of rows [first, last), one after another.
template <class E, bool kSecond>
RESCALED_INLINE void tile_products(const AttentionParameters& p, const TileInput<E>& in, int64_t first, int64_t last,
                                   const TileOutput<Sum<E>>& out) {
  const Rows<E> none{nullptr, 0};
  const auto product = [&](int64_t depth, Rows<E> a0, const E* b0, Rows<E> a1, const E* b1, Sum<E>* to) {
    const int64_t count = last - first, steps = depth_of<E>(depth);
    if constexpr (!kPairs<E>)
      if (in.narrow)
        return product_sum<E, kNarrow, kTileVectors>(count, steps, after(a0, first), b0, after(a1, first), b1, to);
    product_sum<E, kTileVectors>(count, steps, after(a0, first), b0, after(a1, first), b1, to);
  };
  product(p.head_size, in.query, in.key, none, nullptr, out.value_weights);
  product(p.value_size, in.grad_output, in.value, none, nullptr, out.score_gradient);
  if constexpr (kSecond) {
    product(p.head_size, in.tangent_query, in.key, in.query, in.tangent_key, out.tangent_score_gradient);
    product(p.value_size, in.grad_output, in.tangent_value, none, nullptr, out.tangent_e);
  }
}

template <class E, bool kTwoSided, bool kSecond, class T = Sum<E>>
RESCALED_INLINE void tile_gradients(bool odd_kind, const TileInput<E>& in, RowData<T> rows, int64_t first, int64_t last,
                                    const TileOutput<T>& out) {
  for (int64_t i = first; i < last; ++i) {
    const Vec<T> shift = broadcast(rows[kShift][i]), grad_balance = broadcast(rows[kGradBalance][i]),
                 delta = broadcast(rows[kDelta][i]);
    RESCALED_UNROLL for (int j = 0; j < kTileVectors; ++j) {
      const int64_t lane = j * kLanes<T>, at = i * kPanel<E> + lane, to = (i - first) * kPanel<E> + lane;
      const Vec<T> t = scaled<E>(in.score_factor, load(out.value_weights + to));
      Vec<T> even, odd;
      if constexpr (!kTwoSided) {
        even = odd = exp2_vector<T>(in.weights ? (t + load(in.weights + at)) - shift : t - shift);
      } else {
        const Weight<T> weight = in.weights ? split_weight<T>(load(in.weights + at) - shift)
                                            : Weight<T>{broadcast(rows[kExponent][i]), broadcast(rows[kFactor][i])};
        two_sided<T>(t, weight.exponent, even, odd);
        even *= weight.factor, odd *= weight.factor;
      }
      const Vec<T> a = kTwoSided && odd_kind ? odd : even, s = kTwoSided && odd_kind ? even : odd;  // s = du/ds / c
      const Vec<T> drop = in.dropout ? load(in.dropout + at) : broadcast(T(1));
      const Vec<T> e = load(out.score_gradient + to) * drop + grad_balance;
      const Vec<T> score_gradient = kTwoSided ? s * e - odd * delta : a * (e - delta);  // n = odd, p = even
      if constexpr (!kSecond) {
        if (out.bias_only) {
          store<T>(out.score_gradient + to, kTwoSided ? a * e - even * delta : score_gradient);
        } else {
          store<T>(out.value_weights + to, a * drop);
          store<T>(out.score_gradient + to, score_gradient);
        }
      } else {
        const Vec<T> sd = load(out.tangent_score_gradient + to) * in.tangent_factor,
                     ed = load(out.tangent_e + to) * drop, tangent_delta = broadcast(rows[kTangentDelta][i]);
        Vec<T> y = -broadcast(rows[kTangentNormalizer][i]);
        if (in.bias_tangents) y += load(in.bias_tangents + at);
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
        if (out.bias_only) {
          store<T>(out.score_gradient + to, bias);
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
template <class E, bool kTwoSided, bool kSecond, class T = Sum<E>>
static __attribute__((noinline)) void gradient_block(const AttentionParameters& p, int64_t first, int64_t rows,
                                                     const TileInput<E>& in, RowData<T> row_data,
                                                     const TileOutput<T>& out) {
  const int64_t last = round_up(rows, kTileRows);  // rows of padding are there, and have weight 0
  tile_products<E, kSecond>(p, in, first, last, out);
  tile_gradients<E, kTwoSided, kSecond>(p.kind == Kind::sinh, in, row_data, first, last, out);
}

}  // namespace
}  // namespace rescaled::RESCALED_ISA
