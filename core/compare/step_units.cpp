// SPDX-License-Identifier: MIT
#include "core/compare/step_units.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>

#include "core/api/error.hpp"
#include "core/compare/measure.hpp"
#include "core/compare/samples.hpp"
#include "core/ops/combine.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/matrix.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/sizes.hpp"

namespace moe_diag {
namespace {

constexpr double alone_error =
    200;  // expected errors beyond which one element makes its unit fail: outliers' sums cancel

[[noreturn]] void fail(const StepCase& c, std::string_view what) {
  throw Error(ErrorKind::environment,
              fmt::format("explaining {} of layer {}: {}", name_of(c.stage), c.step->layer, what));
}

// The activations that a matmul multiplies for the unit: the row of the first input, or the slot's part of that row.
host::Values multiplied(const StepCase& c, const StepUnit& unit, std::int64_t cols) {
  const host::Values row = host::values_of(c.in[0], unit.row, 1);
  const bool is_shared = host::size_of(row) == cols;
  const auto from = row.begin() + (is_shared ? 0 : std::max(unit.slot, 0) * cols);
  return {from, from + cols};
}

// How much more a unit is expected to err where massive values, which outweigh all others, cancel in a sum.
double outliers(const StepCase& c, const StepUnit& unit) {
  if (operator_of(*c.step).adds_experts && c.in[0])
    return cancellation_of_experts(host::values_of(c.in[0], unit.row, 1), host::values_of(c.b, unit.row, 1));
  if (!is_product(operator_of(*c.step)) || !c.in[0] || c.a.shape.row() == 1) return 1;
  const Weight& weight = *c.step->weights[unit.part];
  host::Values results;
  for (std::int64_t i = 0; i < unit.size; ++i) results.push_back(value_at(c.b, unit.in_b(i)));
  if (weight.rows != unit.size) return 1;
  return cancellation_of_outliers(host::Matrix(weight, std::max(unit.expert, 0)), multiplied(c, unit, weight.cols),
                                  results);
}

// Fills in what a unit's values say.
void measure(const StepCase& c, StepUnit& unit) {
  constexpr double suspicious = 3;  // expected errors
  Measure m;
  for (const Segment& s : unit.segments) {
    m.add(c.a, s.a, c.b, s.b, s.n);
    unit.size += s.n;
  }
  if (m.nonfinite_b > 0) return;  // nothing to be held against
  unit.rms = std::sqrt(m.squares_b / static_cast<double>(unit.size));
  unit.expected = expected_of_values(unit.expected, c.numerics.stored(c.stage), unit.rms);
  unit.error = m.nonfinite_a > 0 ? std::numeric_limits<double>::infinity() : m.rel_l2() / unit.expected;
  if (unit.error > suspicious && std::isfinite(unit.error)) {
    const double more = outliers(c, unit);
    unit.expected *= more;
    unit.error /= more;
  }
  unit.fails = unit.error > failing_error;
  if (unit.fails || m.max_abs <= alone_error * unit.expected * unit.rms) return;
  for (std::int64_t i = 0; i < unit.size && !unit.fails; ++i) {
    const double b = value_at(c.b, unit.in_b(i));
    unit.fails = std::fabs(value_at(c.a, unit.in_a(i)) - b) > unit.tolerance(alone_error, std::fabs(b));
  }
}

double expected_of(const StepCase& c, const ModelConfig& config, const Step& step, int row,
                   std::optional<double> from_inputs = {}) {
  const auto expected = expected_error(c.numerics, step, config, c.first_position + row + 1, c.oracle, from_inputs);
  if (!expected) fail(c, fmt::format("the error of numerics '{}' is not known", c.numerics.name));
  return expected_of_all(c.together, *expected, c.numerics, config, c.first_position + row + 1, c.oracle);
}

// The output that is right on the inputs as the lane had them, where their rounding to 16 bits decides how far it may
// be from the oracle's; empty elsewhere, and where an input is not known.
host::Values right_on_inputs(const StepCase& c, const ModelConfig& config) {
  if (!needs_inputs(c.numerics, *c.step, c.oracle)) return {};
  StepInputs inputs;
  for (std::size_t i = 0; i < c.step->in.size(); ++i) {
    if (!c.in[i]) return {};
    inputs.in[i] = host::values_of(c.in[i]);
  }
  for (int row = 0; row < static_cast<int>(c.a.shape[0]); ++row) inputs.positions.push_back(c.first_position + row);
  inputs.total = c.a.shape.rank == 3 ? static_cast<int>(c.a.shape[2]) : 0;
  return compute(*c.step, config, inputs, nullptr);
}

// The square of how far that is from the oracle's, in one unit.
std::optional<double> moved_by_inputs(const StepCase& c, const host::Values& right, const StepUnit& unit) {
  if (right.empty()) return std::nullopt;
  double squares = 0, all = 0;
  for (const Segment& s : unit.segments)
    for (std::int64_t i = 0; i < s.n; ++i) {
      const double b = value_at(c.b, s.b + i), off = right[static_cast<std::size_t>(s.a + i)] - b;
      squares += off * off;
      all += b * b;
    }
  return all > 0 && std::isfinite(squares) ? std::optional(squares / all) : std::nullopt;
}

// One unit a weight: each writes columns of its own.
void add_parts(const StepCase& c, const ModelConfig& config, int row, std::vector<StepUnit>& units) {
  const std::int64_t start = row * c.a.shape.row();
  std::int64_t first = 0;
  for (std::size_t part = 0; part < c.step->weights.size(); ++part) {
    const Weight* weight = c.step->weights[part];
    Step alone = *c.step;
    alone.weights = {weight};
    alone.biases = {};
    if (const Weight* bias = c.step->bias(part)) alone.biases = {bias};
    StepUnit unit;
    unit.row = row;
    unit.part = part;
    unit.first = first;
    unit.segments = {{start + first, start + first, weight->rows}};
    unit.expected = expected_of(c, config, alone, row);
    if (weight->rows == 1 && c.in[0])
      unit.expected *= cancellation(*c.step, host::values_of(c.in[0], row, 1), value_at(c.b, row));
    units.push_back(std::move(unit));
    first += weight->rows;
  }
  if (first != c.a.shape.row()) fail(c, "the weights' rows are not the output's columns");
}

void add_samples(const StepCase& c, const ModelConfig& config, const host::Values& right, int row,
                 std::vector<StepUnit>& units) {
  const Pair pair{{c.stage, c.step->layer}, c.a, c.b, c.routing_a, c.routing_b, c.first_position, config.experts};
  for (SampleSegments& sample : samples_of_row(pair, row).samples) {
    StepUnit unit;
    unit.row = row;
    unit.expert = sample.expert;
    unit.segments = std::move(sample.segments);
    if (unit.expert >= 0) {
      const std::int64_t width = c.a.shape.row() / config.used;
      unit.slot = static_cast<int>(unit.segments[0].a / width % config.used);
    }
    unit.expected = expected_of(c, config, *c.step, row, moved_by_inputs(c, right, unit));
    units.push_back(std::move(unit));
  }
}

}  // namespace

void check_case(const StepCase& c, const ModelConfig& config) {
  if (std::find(c.step->out.begin(), c.step->out.end(), c.stage) == c.step->out.end())
    fail(c, "the step does not write this stage");
  if (!c.a || !c.b || c.a.shape != c.b.shape) fail(c, "the lane's and the oracle's output differ in shape");
  if (c.a.shape[0] == 0) fail(c, "there are no rows");
  const int sequence = c.a.shape.rank == 3 ? static_cast<int>(c.a.shape[2]) : 0;
  if (c.a.shape != config.shape_of({c.stage, c.step->layer}, c.a.shape[0], sequence))
    fail(c, "the output has not the stage's shape");
  for (std::size_t i = 0; i < c.step->in.size(); ++i) {
    if (!c.in[i]) continue;
    const bool history = c.step->cached(i) != nullptr;
    const std::int64_t rows = c.a.shape[0] + (history ? c.first_position : 0);
    const int width = c.in[i].shape.rank == 3 ? static_cast<int>(c.in[i].shape[2]) : 0;
    if (c.in[i].shape != config.shape_of({c.step->in[i], c.step->layer}, rows, width))
      fail(c, fmt::format("{} has not its stage's shape, or not {} rows", name_of(c.step->in[i]), rows));
  }
  if (payload_of(c.stage) == Payload::indices) {
    if (c.a.dtype != DType::i32 || c.b.dtype != DType::i32) fail(c, "chosen experts are int32");
    return;
  }
  if (!is_per_expert(c.stage)) return;
  for (const Tensor& routing : {c.routing_a, c.routing_b})
    if (!routing || routing.dtype != DType::i32 || routing.shape != Shape{c.a.shape[0], config.used})
      fail(c, "the experts chosen are not known");
}

std::vector<StepUnit> units_of(const StepCase& c, const ModelConfig& config) {
  check_case(c, config);
  std::vector<StepUnit> units;
  const host::Values right = right_on_inputs(c, config);
  for (int row = 0; row < static_cast<int>(c.a.shape[0]); ++row)
    if (operator_of(*c.step).weights == WeightRows::all)
      add_parts(c, config, row, units);
    else
      add_samples(c, config, right, row, units);
  for (StepUnit& unit : units) measure(c, unit);
  return units;
}

double error_of(const StepCase& c, const StepUnit& unit, std::span<const std::int64_t> elements,
                std::span<const double> predicted) {
  const double largest = precision_of(c.a.dtype).largest;
  double off = 0, all = 0, count = 0;
  for (std::size_t k = 0; k < elements.size(); ++k) {
    const double a = value_at(c.a, unit.in_a(elements[k])), p = predicted[k];
    const bool finite = std::fabs(p) <= largest;  // false for NaN
    // One of two values near the largest may overflow. A NaN in the prediction is no overflow: it comes from the
    // weights.
    if (finite != std::isfinite(a) && !std::isnan(p) && std::fmin(std::fabs(p), std::fabs(a)) > largest / 1e4) continue;
    if (finite != std::isfinite(a)) return std::numeric_limits<double>::infinity();
    if (!finite) continue;
    off += (a - p) * (a - p);
    all += p * p;
    ++count;
  }
  if (count == 0) return std::numeric_limits<double>::infinity();
  if (all == 0) all = count * unit.rms * unit.rms;
  return off == 0 ? 0 : std::sqrt(off / all) / unit.expected;
}

}  // namespace moe_diag
