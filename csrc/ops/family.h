// SPDX-License-Identifier: BSD-3-Clause
// The rules of a family of four primitives F, B (backward), J (JVP), BB (double backward): closed under second order,
// because <G, F> has a symmetric Hessian.
//
// clang-format off
//                    reverse rule                            forward rule
//   forward          backward                                jvp
//   backward         double backward                         backward (of the cotangents' tangents) + double backward's
//                                                            gradients
//   jvp              backward, double backward's gradients   plain-tensor formula
//   double backward  plain-tensor formula                    plain-tensor formula
// clang-format on
//
// What the forward saved and the other three take along are auxiliaries: they carry no gradient and no tangent; each
// rule is the total derivative.
//
// A Family has, all static, with lists of tensors in the order of the schemas (undefined = zero):
//   using Settings
//   kPoint, kExtra, kOutputs, kSaved   how many differentiable inputs, others, differentiable outputs, saved tensors
//   names                              of the four primitives' nodes
//   backward(settings, grads, point, extra, saved, need) -> kPoint
//   jvp(settings, tangents, point, extra, saved) -> kOutputs
//   double_backward(settings, tangents, grads, point, extra, saved, need) -> kOutputs + kPoint
//   plain_double_backward(settings, tangents, grads, point, extra, need) -> kOutputs + kPoint, differentiable
#pragma once
#include <ATen/TensorOperators.h>

#include <array>

#include "node.h"

namespace rescaled::ops {

inline variable_list part(const variable_list& list, size_t first, size_t count) {
  return {list.begin() + static_cast<std::ptrdiff_t>(first), list.begin() + static_cast<std::ptrdiff_t>(first + count)};
}
inline std::vector<bool> part(const std::vector<bool>& flags, size_t first, size_t count) {
  return {flags.begin() + static_cast<std::ptrdiff_t>(first),
          flags.begin() + static_cast<std::ptrdiff_t>(first + count)};
}
inline bool any_defined(const variable_list& list) {
  return std::any_of(list.begin(), list.end(), [](const Tensor& t) { return t.defined(); });
}
inline bool any_needed(const std::vector<bool>& need) {
  return std::find(need.begin(), need.end(), true) != need.end();
}
// A schema's bool[kCount].
template <size_t kCount>
std::array<bool, kCount> flags(const std::vector<bool>& need) {
  std::array<bool, kCount> out{};
  std::copy(need.begin(), need.end(), out.begin());
  return out;
}
inline variable_list join(variable_list list, const variable_list& more) {
  list.insert(list.end(), more.begin(), more.end());
  return list;
}

// Settings with the outputs asked for; the others are empty [0] tensors, whose cotangents mean nothing.
template <class Settings, size_t kCount>
struct NeedSettings : Settings {
  std::array<bool, kCount> need{};
  std::vector<bool> flags() const { return std::vector<bool>(need.begin(), need.end()); }
  variable_list cotangents(variable_list grads) const {
    for (size_t i = 0; i < kCount; ++i)
      if (!need[i]) grads[i] = Tensor();
    return grads;
  }
  template <class Arguments>
  void collect(Arguments& args) const {
    Settings::collect(args);
    for (const bool flag : need) args.collect(flag);
  }
  template <class Arguments>
  void pack(Arguments& args) const {
    Settings::pack(args);
    for (const bool flag : need) args.pack(flag);
  }
  template <class Arguments>
  void unpack(Arguments& args) {
    Settings::unpack(args);
    for (bool& flag : need) flag = args.template unpack<bool>();
  }
};

template <class Family>
struct Rules {
  using Settings = typename Family::Settings;
  static constexpr size_t kPoint = Family::kPoint, kExtra = Family::kExtra, kOut = Family::kOutputs,
                          kSaved = Family::kSaved;

  // The gradients of a double backward along `tangents`, for the inputs `need` names.
  static variable_list hessian_product(const Settings& settings, const variable_list& tangents,
                                       const variable_list& grads, const variable_list& point,
                                       const variable_list& extra, const variable_list& saved,
                                       const std::vector<bool>& need) {
    std::vector<bool> all(kOut, false);
    all.insert(all.end(), need.begin(), need.end());
    return part(Family::double_backward(settings, tangents, grads, point, extra, saved, all), kOut, kPoint);
  }

  // point | extra
  struct Forward {
    using Settings = typename Family::Settings;
    static constexpr size_t kInputs = kPoint, kOutputs = kOut, kAuxiliaries = kExtra;
    static constexpr bool kTraceable = true, kSavesOutputs = true;
    static const char* name() { return Family::names[0]; }
    static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list& out,
                             const variable_list& grads, const std::vector<bool>& need) {
      return Family::backward(settings, part(grads, 0, kOut), part(in, 0, kPoint), part(in, kPoint, kExtra), out, need);
    }
    static variable_list jvp(const Settings& settings, const variable_list& in, const variable_list& tangents,
                             const variable_list& out) {
      return Family::jvp(settings, tangents, part(in, 0, kPoint), part(in, kPoint, kExtra), out);
    }
  };

  // grads, point | extra, saved
  struct Backward {
    using Settings = NeedSettings<typename Family::Settings, kPoint>;
    static constexpr size_t kInputs = kOut + kPoint, kOutputs = kPoint, kAuxiliaries = kExtra + kSaved;
    static constexpr bool kTraceable = true, kSavesOutputs = false;
    static const char* name() { return Family::names[1]; }
    static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list&,
                             const variable_list& grads, const std::vector<bool>& need) {
      return Family::double_backward(settings, settings.cotangents(grads), part(in, 0, kOut), part(in, kOut, kPoint),
                                     part(in, kInputs, kExtra), part(in, kInputs + kExtra, kSaved), need);
    }
    static variable_list jvp(const Settings& settings, const variable_list& in, const variable_list& tangents,
                             const variable_list&) {
      const variable_list point = part(in, kOut, kPoint), extra = part(in, kInputs, kExtra),
                          saved = part(in, kInputs + kExtra, kSaved), along_grads = part(tangents, 0, kOut),
                          along_point = part(tangents, kOut, kPoint);
      variable_list sum(kPoint);
      const auto add = [&](const variable_list& terms) {
        for (size_t i = 0; i < kPoint; ++i)
          if (settings.need[i] && terms[i].defined()) sum[i] = sum[i].defined() ? sum[i] + terms[i] : terms[i];
      };
      if (any_defined(along_grads)) add(Family::backward(settings, along_grads, point, extra, saved, settings.flags()));
      if (any_defined(along_point))
        add(hessian_product(settings, along_point, part(in, 0, kOut), point, extra, saved, settings.flags()));
      return sum;
    }
  };

  // tangents, point | extra, saved
  struct Jvp {
    using Settings = typename Family::Settings;
    static constexpr size_t kInputs = 2 * kPoint, kOutputs = kOut, kAuxiliaries = kExtra + kSaved;
    static constexpr bool kTraceable = true, kSavesOutputs = false;
    static const char* name() { return Family::names[2]; }
    static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list&,
                             const variable_list& grads, const std::vector<bool>& need) {
      const variable_list point = part(in, kPoint, kPoint), extra = part(in, kInputs, kExtra),
                          saved = part(in, kInputs + kExtra, kSaved);
      const std::vector<bool> along = part(need, 0, kPoint), at = part(need, kPoint, kPoint);
      const variable_list none(kPoint);
      return join(
          any_needed(along) ? Family::backward(settings, grads, point, extra, saved, along) : none,
          any_needed(at) ? hessian_product(settings, part(in, 0, kPoint), grads, point, extra, saved, at) : none);
    }
    // Never with tangents: the operator takes those to the plain-tensor formula.
    static variable_list jvp(const Settings&, const variable_list&, const variable_list&, const variable_list&) {
      return variable_list(kOutputs);
    }
  };

  // tangents, grads, point | extra, saved
  struct DoubleBackward {
    using Settings = NeedSettings<typename Family::Settings, kOut + kPoint>;
    static constexpr size_t kInputs = 2 * kPoint + kOut, kOutputs = kOut + kPoint, kAuxiliaries = kExtra + kSaved;
    static constexpr bool kTraceable = false, kSavesOutputs = false;
    static const char* name() { return Family::names[3]; }
    static variable_list plain(const Settings& settings, const variable_list& in) {
      return settings.cotangents(Family::plain_double_backward(settings, part(in, 0, kPoint), part(in, kPoint, kOut),
                                                               part(in, kPoint + kOut, kPoint),
                                                               part(in, kInputs, kExtra), settings.flags()));
    }
    static variable_list vjp(const Settings& settings, const variable_list& in, const variable_list&,
                             const variable_list& grads, const std::vector<bool>&) {
      return differentiate([&](const variable_list& x) { return plain(settings, x); }, in, kInputs,
                           settings.cotangents(grads));
    }
    // Never with tangents: the operator takes those to the plain-tensor formula.
    static variable_list jvp(const Settings&, const variable_list&, const variable_list&, const variable_list&) {
      return variable_list(kOutputs);
    }
  };
};

template <class Tuple>
variable_list to_list(Tuple&& tuple) {
  return std::apply([](auto&&... t) { return variable_list{std::move(t)...}; }, std::move(tuple));
}

}  // namespace rescaled::ops
