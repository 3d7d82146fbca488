// SPDX-License-Identifier: MIT
#include "core/conformance/judged_step.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/compare/step_units.hpp"
#include "core/ops/linear.hpp"

namespace moe_diag {
namespace {

// Different ids in each row, for a step that does not show which experts its rows are of.
std::vector<std::int32_t> any_choice(std::size_t rows, int used) {
  std::vector<std::int32_t> ids;
  for (std::size_t row = 0; row < rows; ++row)
    for (int slot = 0; slot < used; ++slot) ids.push_back(slot);
  return ids;
}

std::vector<std::int32_t> choice_of(const JudgedStep& judged) {
  const std::size_t rows = judged.rows(), used = static_cast<std::size_t>(judged.model->config().used);
  for (std::size_t i = 0; i < judged.step->in.size(); ++i)
    if (payload_of(judged.step->in[i]) == Payload::indices) {
      const host::Values& ids = judged.inputs.in[i];
      return {ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(rows * used)};
    }
  for (std::size_t o = 0; o < judged.step->out.size(); ++o)
    if (payload_of(judged.step->out[o]) == Payload::indices)
      return {judged.right[o].begin(), judged.right[o].begin() + static_cast<std::ptrdiff_t>(rows * used)};
  return any_choice(rows, judged.model->config().used);
}

std::string place_of(const JudgedStep& judged, std::size_t output, std::int64_t element) {
  const std::int64_t width = judged.out[output].shape.row();
  return fmt::format("{}, {}: position {}, value {} of {}", text_of(*judged.step, output), judged.what,
                     judged.inputs.positions[static_cast<std::size_t>(element / width)], element % width, width);
}

std::string failure_of_choice(const JudgedStep& judged, std::size_t output) {
  const Tensor found = judged.out[output].view();
  const std::int64_t width = found.shape.row();
  for (std::int64_t i = 0; i < found.shape.count(); ++i) {
    const double expected = judged.right[output][static_cast<std::size_t>(i)];
    if (i / width == judged.skipped_row || found.value(i) == expected) continue;
    return fmt::format("{}: expected expert {}, found {}", place_of(judged, output, i), expected, found.value(i));
  }
  return "";
}

StepCase case_of(const JudgedStep& judged, std::size_t output, const Tensor& right,
                 const std::vector<std::int32_t>& choice) {
  StepCase c;
  c.step = judged.step;
  c.stage = judged.step->out[output];
  c.a = judged.out[output].view();
  c.b = right;
  c.first_position = judged.inputs.positions.front();
  const Shape of_choice{static_cast<std::int64_t>(judged.rows()), judged.model->config().used};
  c.routing_a = c.routing_b = {choice.data(), DType::i32, of_choice};
  const auto& in = judged.inputs.in[0];
  const Stage stage = judged.step->in.size() > 0 ? judged.step->in[0] : Stage();
  if (stage && !judged.step->cached(0) && payload_of(stage) == Payload::values) {
    const Shape shape = judged.model->config().shape_of({stage, judged.step->layer}, c.a.shape[0], judged.inputs.total);
    c.in[0] = {in.data(), DType::f64, shape};
  }
  return c;
}

// The first value that makes a unit wrong.
std::int64_t first_wrong(const StepCase& c, const StepUnit& unit) {
  for (std::int64_t i = 0; i < unit.size; ++i)
    if (!std::isfinite(value_at(c.a, unit.in_a(i)))) return unit.in_a(i);
  const std::vector<std::int64_t> wrong = wrong_elements(c, unit, 0);
  if (!wrong.empty()) return unit.in_a(wrong.front());
  const std::vector<double> off = errors_of_elements(c, unit);
  return unit.in_a(std::max_element(off.begin(), off.end()) - off.begin());
}

// Whether the few values of a row are small beside the terms that they are sums of: the error is in proportion to
// those.
bool is_of_cancelling_terms(const JudgedStep& judged, const StepCase& c, const StepUnit& unit) {
  constexpr std::int64_t few = 16;
  const Step& step = *judged.step;
  if (unit.size > few || operator_of(step).weights != WeightRows::all || !c.in[0]) return false;
  host::Values results;
  for (std::int64_t i = 0; i < unit.size; ++i) results.push_back(value_at(c.b, unit.in_b(i)));
  const host::Values input = host::values_of(c.in[0], unit.row, 1);
  return unit.error <= failing_error * cancellation(*step.weights[unit.part], input, results);
}

// Predicted roundings that are allowed. The plain operator sums in double as well, in the order of the columns.
double most_errors(const LaneNumerics& lane) { return lane.name == "f64" ? 3 * failing_error : failing_error; }

std::string failure_of_values(const JudgedStep& judged, std::size_t output, const LaneNumerics& lane,
                              const LaneNumerics& oracle) {
  const std::vector<std::int32_t> choice = choice_of(judged);
  const Tensor right{judged.right[output].data(), DType::f64, judged.out[output].shape};
  StepCase c = case_of(judged, output, right, choice);
  c.numerics = lane;
  c.oracle = oracle;
  for (const StepUnit& unit : units_of(c, judged.model->config())) {
    if (!unit.fails || unit.row == judged.skipped_row || is_of_cancelling_terms(judged, c, unit)) continue;
    if (lane.name == "f64" && unit.error <= most_errors(lane)) continue;
    const std::int64_t at = first_wrong(c, unit);
    return fmt::format(
        "{}{}: expected {:.9g}, found {:.9g}; relative error {:.2e}, allowed {:.2e}, {:g} times the predicted rounding "
        "of {}",
        place_of(judged, output, at), unit.expert >= 0 ? fmt::format(", expert {}", unit.expert) : "", right.value(at),
        c.a.value(at), unit.error * unit.expected, most_errors(lane) * unit.expected, most_errors(lane), lane.name);
  }
  return "";
}

}  // namespace

CopiedTensor::CopiedTensor(const Tensor& tensor) : dtype(tensor.dtype), shape(tensor.shape) {
  const auto* data = tensor.as<std::byte>();
  bytes.assign(data, data + tensor.bytes());
}

std::string failure_of(const JudgedStep& judged, const LaneNumerics& lane, const LaneNumerics& oracle) {
  for (std::size_t output = 0; output < judged.step->out.size(); ++output) {
    std::string failure = payload_of(judged.step->out[output]) == Payload::indices
                              ? failure_of_choice(judged, output)
                              : failure_of_values(judged, output, lane, oracle);
    if (!failure.empty()) return failure;
  }
  return "";
}

std::string text_of(const Step& step, std::size_t output) {
  const std::string types = types_of(step);
  return fmt::format("{} ({}{}{})", operator_of(step).name, types, types.empty() ? "" : ", ",
                     name_of(step.out[output]));
}

std::optional<std::int64_t> first_difference(const CopiedTensor& a, const CopiedTensor& b, Stage stage,
                                             int first_position, int skipped_row) {
  const Tensor x = a.view(), y = b.view();
  const std::int64_t width = x.shape.row(), keys = is(stage, Role::key_values) ? x.shape[x.shape.rank - 1] : 0;
  if (a.shape != b.shape || a.dtype != b.dtype) return 0;
  const std::size_t size = size_of(a.dtype);
  for (std::int64_t i = 0; i < x.shape.count(); ++i) {
    const std::int64_t row = i / width;
    if (row == skipped_row || (keys > 0 && i % keys > first_position + row)) continue;
    const std::size_t at = static_cast<std::size_t>(i) * size;
    if (std::memcmp(a.bytes.data() + at, b.bytes.data() + at, size) == 0) continue;
    if (!(std::isnan(x.value(i)) && std::isnan(y.value(i)))) return i;
  }
  return std::nullopt;
}

}  // namespace moe_diag
