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
using Form = Fault::Form;

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }
double silu(double g) { return g * sigmoid(g); }

void add_activation(const Operands& o, std::string text, Form form, HypothesisList& list) {
  list.add(StepCause::function, std::move(text),
           [o, form](const StepUnit& unit) { return host::activated(o.input(0, unit), o.input(1, unit), form); });
}

// The squared distance of some units from that activation.
double distance_to(const Operands& o, const FailingUnits& failing, Form form) {
  double squares = 0;
  for (std::size_t i = 0; i < std::min<std::size_t>(failing.size(), 8); ++i) {
    const Values out = host::activated(o.input(0, *failing[i]), o.input(1, *failing[i]), form);
    for (std::size_t k = 0; k < out.size(); ++k)
      squares += std::pow(value_at(o.c.a, failing[i]->in_a(static_cast<std::int64_t>(k))) - out[k], 2);
  }
  return squares;
}

// The two forms of gelu are so near that a coarse storage hides which one it is.
void add_gelu(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  constexpr double clearly = 9;  // times nearer, in squares
  const double erf = distance_to(o, failing, Form::gelu), tanh = distance_to(o, failing, Form::gelu_tanh);
  const bool is_tanh = tanh<erf, is_told = std::max(erf, tanh)> clearly * std::min(erf, tanh);
  const std::string_view form = !is_told ? "" : is_tanh ? " (by tanh)" : " (by erf)";
  add_activation(o, fmt::format("gelu(gate){} instead of silu(gate)", form), is_tanh ? Form::gelu_tanh : Form::gelu,
                 list);
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

// The activation of gpt-oss, which clamps both first, without its limit.
Values silu_1702_up_plus_one(const Values& gate, const Values& up) {
  Values more = up;
  for (double& value : more) ++value;
  return host::activated(gate, more, Form::silu_1702);
}

// ---- places --------------------------------------------------------------------------------------------------------

void add_places(const Operands& o, HypothesisList& list) {
  const auto add = [&](std::string text, Form form) {
    list.add(StepCause::permutation, std::move(text), [o, form](const StepUnit& unit) {
      return host::misplaced_swiglu(o.input(0, unit), o.input(1, unit), form);
    });
  };
  add("gate and up changed places: silu(up) * gate", Form::swapped);
  add("gate and up read as pairs (2i, 2i + 1) of [gate, up]", Form::pairs);
  add("pairs (gate, up) read as halves: the first one as gate, the second one as up", Form::halves);
}

}  // namespace

void add_swiglu_hypotheses(const Operands& o, const FailingUnits& failing, HypothesisList& list) {
  list.add(StepCause::skipped, "gate * up, without silu", [o](const StepUnit& unit) {
    Values out = o.input(0, unit);
    const Values up = o.input(1, unit);
    for (std::size_t i = 0; i < out.size(); ++i) out[i] *= up[i];
    return out;
  });
  add_places(o, list);
  add_gelu(o, failing, list);
  add_activation(o, "relu(gate) instead of silu(gate)", Form::relu, list);
  add_activation(o, "gate * sigmoid(1.702 gate) instead of silu(gate)", Form::silu_1702, list);
  add_limits(o, failing, list);
  const std::string of_gpt_oss = "gate * sigmoid(1.702 gate) * (up + 1) instead of silu(gate) * up";
  list.add(StepCause::function, of_gpt_oss,
           [o](const StepUnit& unit) { return silu_1702_up_plus_one(o.input(0, unit), o.input(1, unit)); });
  add_activation(o, of_gpt_oss + ", clamped at 7: the activation of gpt-oss", Form::gpt_oss, list);
}

}  // namespace moe_diag
