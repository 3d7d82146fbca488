// SPDX-License-Identifier: MIT
// One operator: out[t] = in[0][t] * sigmoid(in[1][t]), where in[1][t] is one value.
//
// All that the core knows of it stands here. The plain computation, in double, is what results are held against when
// they have to be explained, and it stands in for a backend that lacks the operator. The constant at the end is what
// the rest of the core asks: the cost and the rounding error to expect, and the mistakes to try as explanations.
// Functions here read numbers that they are given and touch nothing else. To recognise one more mistake, add an entry
// in add_hypotheses(). A faster kernel belongs into a backend.
#include "core/ops/sigmoid_gate.hpp"

#include <fmt/format.h>

#include <cmath>

namespace moe_diag::host {
namespace {

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

Values times(std::span<const double> x, double factor) {
  Values out(x.begin(), x.end());
  for (double& value : out) value *= factor;
  return out;
}

}  // namespace

Values sigmoid_gate(std::span<const double> x, double gate) { return times(x, sigmoid(gate)); }

}  // namespace moe_diag::host

namespace moe_diag {
namespace {

host::Values compute(const StepRows& rows) {
  return rows.by_row([&](std::size_t r) { return host::sigmoid_gate(rows.row(0, r), rows.row(1, r).front()); });
}

void add_hypotheses(const Operands& o, const FailingUnits&, HypothesisList& list) {
  const auto by = [o](auto factor) {
    return
        [o, factor](const StepUnit& unit) { return host::times(o.input(0, unit), factor(o.input(1, unit).front())); };
  };
  const std::string_view gate = name_of(o.step.in[1]);
  list.add(StepCause::skipped, fmt::format("not multiplied by the sigmoid of {}", gate),
           by([](double) { return 1.0; }));
  list.add(StepCause::skipped, fmt::format("multiplied by {} itself, without the sigmoid", gate),
           by([](double x) { return x; }));
}

}  // namespace

// In squared roundings. Six are those of the inputs, the exponential, the sum, the quotient and the product. The
// rounding of the gate counts by the square of its size, 5 in trained models, since it is one of an exponent.
constexpr int of_exponential = 5 * 5;

const Operator sigmoid_gate_op{
    .name = "sigmoid_gate",
    .depends_on_values = true,
    .squared_error = squared_error_of<6 + of_exponential>,
    .cost = cost_of_weights,
    .compute = compute,
    .add_hypotheses = add_hypotheses,
};

}  // namespace moe_diag
