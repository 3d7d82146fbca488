// SPDX-License-Identifier: MIT
#include "core/ops/swiglu.hpp"

#include <algorithm>
#include <cmath>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {

Values swiglu(std::span<const double> gate, std::span<const double> up) {
  expect("swiglu", "values", size_of(gate), size_of(up));
  Values out(gate.size());
  for (std::size_t i = 0; i < out.size(); ++i) out[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
  return out;
}

namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

double activation_of(double g, Fault::Form form) {
  constexpr double root = 0.79788456080286536;  // sqrt(2 / pi)
  switch (form) {
    case Fault::Form::gelu: return 0.5 * g * std::erfc(-g / std::sqrt(2.0));
    case Fault::Form::gelu_tanh: return 0.5 * g * (1 + std::tanh(root * (g + 0.044715 * g * g * g)));
    case Fault::Form::relu: return std::max(g, 0.0);
    case Fault::Form::silu_1702: return g * sigmoid(1.702 * g);
    default: return g * sigmoid(g);
  }
}

}  // namespace

Values activated(std::span<const double> gate, std::span<const double> up, Fault::Form form) {
  expect("activated", "values", size_of(gate), size_of(up));
  constexpr double limit = 7;  // of gpt-oss, as openai/gpt-oss, torch/model.py, swiglu()
  Values out(gate.size());
  for (std::size_t i = 0; i < out.size(); ++i)
    out[i] = form == Fault::Form::gpt_oss ? activation_of(std::min(gate[i], limit), Fault::Form::silu_1702) *
                                                (std::clamp(up[i], -limit, limit) + 1)
                                          : activation_of(gate[i], form) * up[i];
  return out;
}

Values misplaced_swiglu(std::span<const double> gate, std::span<const double> up, Fault::Form form) {
  expect("misplaced_swiglu", "values", size_of(gate), size_of(up));
  const std::size_t n = gate.size();
  if (form == Fault::Form::swapped) return swiglu(up, gate);
  Values read_gate, read_up;
  for (std::size_t i = 0; i < 2 * n; ++i) {
    const bool as_pairs = form == Fault::Form::pairs, first = i < n, even = i % 2 == 0;
    const double value = as_pairs ? (first ? gate[i] : up[i - n]) : (even ? gate : up)[i / 2];
    ((as_pairs ? even : first) ? read_gate : read_up).push_back(value);
  }
  return swiglu(read_gate, read_up);
}

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

// What is beside each other in a row of one expert, or of the shared one.
host::Values compute(const StepRows& rows) {
  const host::Values &gate = rows.inputs.in[0], &up = rows.inputs.in[1];
  if (rows.is(Fault::Kind::activation)) return host::activated(gate, up, form_of(*rows.fault));
  if (!rows.is(Fault::Kind::gate_up)) return host::swiglu(gate, up);
  const std::size_t slots = is_per_expert(rows.step.out[0]) ? host::at(rows.config.used) : 1;
  const std::size_t width = gate.size() / rows.count() / slots;
  host::Values out;
  for (std::size_t first = 0; first < gate.size(); first += width) {
    const host::Values one = host::misplaced_swiglu(std::span(gate).subspan(first, width),
                                                    std::span(up).subspan(first, width), form_of(*rows.fault));
    out.insert(out.end(), one.begin(), one.end());
  }
  return out;
}

}  // namespace

const Operator swiglu_op{
    .name = "swiglu",
    .depends_on_values = true,
    .squared_error = squared_error_of<6>,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_swiglu_hypotheses,
};

}  // namespace moe_diag
