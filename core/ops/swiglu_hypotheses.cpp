// SPDX-License-Identifier: MIT
// The mistakes of an activation: another function of the gate, a limit, which is solved, and values in other places.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <string>
#include <vector>

#include "core/ops/sizes.hpp"
#include "core/ops/swiglu.hpp"

namespace moe_diag {
namespace {

using host::Values;
using Activation = double (*)(double gate);

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double g) { return g * sigmoid(g); }
double silu_1702(double g) { return g * sigmoid(1.702 * g); }
double relu(double g) { return std::max(g, 0.0); }
double gelu(double g) { return 0.5 * g * std::erfc(-g / std::sqrt(2.0)); }
double gelu_by_tanh(double g) {
  constexpr double root = 0.79788456080286536;  // sqrt(2 / pi)
  return 0.5 * g * (1 + std::tanh(root * (g + 0.044715 * g * g * g)));
}

Values activated(const Values& gate, const Values& up, Activation activation) {
  Values out(gate.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = activation(gate[i]) * up[i];
  return out;
}

void add_activation(const Operands& o, std::string text, Activation activation, HypothesisList& list) {
  list.add(StepCause::function, std::move(text),
           [o, activation](const StepUnit& unit) { return activated(o.input(0, unit), o.input(1, unit), activation); });
}

// The squared distance of some units from that activation.
double distance_to(const Operands& o, const FailingUnits& failing, Activation activation) {
  double squares = 0;
  for (std::size_t i = 0; i < std::min<std::size_t>(failing.size(), 8); ++i) {
    const Values out = activated(o.input(0, *failing[i]), o.input(1, *failing[i]), activation);
    for (std::size_t k = 0; k < out.size(); ++k)
      squares += std::pow(value_at(o.c.a, failing[i]->in_a(static_cast<std::int64_t>(k))) - out[k], 2);
  }
  return squares;
}

// The two forms of gelu are so near that a coarse storage hides which one it is.
void add_gelu(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  constexpr double clearly = 9;  // times nearer, in squares
  const double erf = distance_to(o, failing, gelu), tanh = distance_to(o, failing, gelu_by_tanh);
  const bool is_tanh = tanh<erf, is_told = std::max(erf, tanh)> clearly * std::min(erf, tanh);
  const std::string_view form = !is_told ? "" : is_tanh ? " (by tanh)" : " (by erf)";
  add_activation(o, fmt::format("gelu(gate){} instead of silu(gate)", form), is_tanh ? gelu_by_tanh : gelu, list);
}

// ---- a limit -------------------------------------------------------------------------------------------------------

// The activation of gpt-oss: the gate at most the limit, up within it on both sides. Others limit the gate alone, or
// the activated gate.
struct Limit {
  double value = 0;
  bool of_up = true;

  Values clamped(const Values& gate, const Values& up) const {
    Values out(gate.size());
    for (std::size_t i = 0; i < out.size(); ++i)
      out[i] = silu(std::min(gate[i], value)) * (of_up ? std::clamp(up[i], -value, value) : up[i]);
    return out;
  }
};

// The limits that single wrong elements show, in a few units: |a / silu(gate)| where up is cut off, or the gate whose
// silu is a / up where that is.
std::vector<double> limits_shown(const Operands& o, const FailingUnits& failing, bool of_up) {
  std::vector<double> limits;
  for (std::size_t k = 0; k < std::min<std::size_t>(failing.size(), 8); ++k) {
    const StepUnit& unit = *failing[k];
    const Values gate = o.input(0, unit), up = o.input(1, unit);
    for (const std::int64_t i : wrong_elements(o.c, unit, 0)) {
      const double a = value_at(o.c.a, unit.in_a(i)), g = gate[host::at(i)], u = up[host::at(i)];
      if (of_up) {
        const double limit = std::fabs(a / silu(g));
        if (std::fabs(u) > limit && g <= limit) limits.push_back(limit);
      } else if (g > 0 && a / u > 0) {
        double limit = g;  // by Newton's method: silu rises where its argument is positive
        for (int step = 0; step < 40; ++step)
          limit -= (silu(limit) - a / u) / (sigmoid(limit) * (1 + limit * (1 - sigmoid(limit))));
        if (limit > 0 && limit < g) limits.push_back(limit);
      }
    }
  }
  return limits;
}

// The limit that at least three elements, and most of those that show one, agree on; to six digits.
std::optional<double> limit_of(std::vector<double> shown) {
  constexpr std::size_t least = 3;
  constexpr double agree = 1e-4;
  if (shown.size() < least) return std::nullopt;
  std::sort(shown.begin(), shown.end());
  const double middle = shown[shown.size() / 2];
  const auto near = static_cast<std::size_t>(
      std::count_if(shown.begin(), shown.end(), [&](double x) { return std::fabs(x - middle) <= agree * middle; }));
  if (near < least || near * 2 < shown.size() || !(middle > 0) || !std::isfinite(middle)) return std::nullopt;
  const double unit = std::pow(10, std::floor(std::log10(middle)) - 3), rounded = std::round(middle / unit) * unit;
  return std::fabs(rounded - middle) <= agree / 10 * middle ? rounded : middle;
}

void add_limits(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  for (const bool of_up : {true, false}) {
    const auto value = limit_of(limits_shown(o, failing, of_up));
    if (!value) continue;
    list.add(StepCause::function,
             of_up ? fmt::format("gate clamped to at most {0:.6g}, up to -{0:.6g} .. {0:.6g}", *value)
                   : fmt::format("gate clamped to at most {:.6g}", *value),
             [o, limit = Limit{*value, of_up}](const StepUnit& unit) {
               return limit.clamped(o.input(0, unit), o.input(1, unit));
             });
  }
}

// The activation of gpt-oss, which clamps both first, at 7.
Values silu_1702_up_plus_one(const Values& gate, const Values& up, double limit) {
  Values out(gate.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = silu_1702(std::min(gate[i], limit)) * (std::clamp(up[i], -limit, limit) + 1);
  return out;
}

// ---- places --------------------------------------------------------------------------------------------------------

// Gate and up side by side, [gate, up], read as pairs; or pairs read as if they were side by side.
struct Fused {
  Values gate, up;

  static Fused of_halves(const Values& gate, const Values& up) {
    Values both = gate;
    both.insert(both.end(), up.begin(), up.end());
    Fused read;
    for (std::size_t i = 0; i < both.size(); ++i) (i % 2 == 0 ? read.gate : read.up).push_back(both[i]);
    return read;
  }
  static Fused of_pairs(const Values& gate, const Values& up) {
    Fused read;
    for (std::size_t i = 0; i < 2 * gate.size(); ++i)
      (i < gate.size() ? read.gate : read.up).push_back(i % 2 == 0 ? gate[i / 2] : up[i / 2]);
    return read;
  }
};

void add_places(const Operands& o, HypothesisList& list) {
  list.add(StepCause::permutation, "gate and up changed places: silu(up) * gate",
           [o](const StepUnit& unit) { return host::swiglu(o.input(1, unit), o.input(0, unit)); });
  list.add(StepCause::permutation, "gate and up read as pairs (2i, 2i + 1) of [gate, up]", [o](const StepUnit& unit) {
    const Fused read = Fused::of_halves(o.input(0, unit), o.input(1, unit));
    return host::swiglu(read.gate, read.up);
  });
  list.add(StepCause::permutation, "pairs (gate, up) read as halves: the first one as gate, the second one as up",
           [o](const StepUnit& unit) {
             const Fused read = Fused::of_pairs(o.input(0, unit), o.input(1, unit));
             return host::swiglu(read.gate, read.up);
           });
}

}  // namespace

void add_swiglu_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  list.add(StepCause::skipped, "gate * up, without silu", [o](const StepUnit& unit) {
    return activated(o.input(0, unit), o.input(1, unit), [](double g) { return g; });
  });
  add_places(o, list);
  add_gelu(o, failing, list);
  add_activation(o, "relu(gate) instead of silu(gate)", relu, list);
  add_activation(o, "gate * sigmoid(1.702 gate) instead of silu(gate)", silu_1702, list);
  add_limits(o, failing, list);
  for (const double limit : {static_cast<double>(INFINITY), 7.0})
    list.add(
        StepCause::function,
        fmt::format("gate * sigmoid(1.702 gate) * (up + 1) instead of silu(gate) * up{}",
                    std::isinf(limit) ? "" : ", clamped at 7: the activation of gpt-oss"),
        [o, limit](const StepUnit& unit) { return silu_1702_up_plus_one(o.input(0, unit), o.input(1, unit), limit); });
}

}  // namespace moe_diag
