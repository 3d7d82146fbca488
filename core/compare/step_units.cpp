// SPDX-License-Identifier: MIT
#include "core/compare/step_units.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <set>

#include "core/api/error.hpp"
#include "core/compare/expected.hpp"
#include "core/compare/measure.hpp"
#include "core/forward/program.hpp"

namespace moe_diag {
namespace {

constexpr double element_error = 8;          // expected errors beyond which an element of a unit that fails is wrong
constexpr double small_beside_worst = 0.03;  // in a footprint: outliers are off by more than others
constexpr double alone_error = 200;          // and beyond which one element makes its unit fail: outliers' sums cancel
constexpr std::size_t most_ranges = 4;       // in a footprint's text
constexpr double nearly_all = 0.7;           // of a range: the others are right by chance

[[noreturn]] void fail(const StepCase& c, std::string_view what) {
  throw Error(ErrorKind::environment,
              fmt::format("explaining {} of layer {}: {}", name_of(c.stage), c.step->layer, what));
}

// Fills in what a unit's values say.
void measure(const StepCase& c, StepUnit& unit) {
  Measure m;
  for (const Segment& s : unit.segments) {
    m.add(c.a, s.a, c.b, s.b, s.n);
    unit.size += s.n;
  }
  if (m.nonfinite_b > 0) return;  // nothing to be held against
  unit.rms = std::sqrt(m.squares_b / static_cast<double>(unit.size));
  unit.error = m.nonfinite_a > 0 ? std::numeric_limits<double>::infinity() : m.rel_l2() / unit.expected;
  unit.fails = unit.error > failing_error;
  if (unit.fails || m.max_abs <= alone_error * unit.expected * unit.rms) return;
  for (std::int64_t i = 0; i < unit.size && !unit.fails; ++i) {
    const double b = value_at(c.b, unit.in_b(i));
    unit.fails = std::fabs(value_at(c.a, unit.in_a(i)) - b) > unit.tolerance(alone_error, std::fabs(b));
  }
}

double expected_of(const StepCase& c, const ModelConfig& config, const Step& step, int row) {
  const auto expected = expected_error(c.numerics, step, config, c.first_position + row + 1);
  if (!expected) fail(c, fmt::format("the error of numerics '{}' is not known", c.numerics));
  return *expected;
}

// One unit a weight: each writes columns of its own.
void add_parts(const StepCase& c, const ModelConfig& config, int row, std::vector<StepUnit>& units) {
  const std::int64_t start = row * c.a.shape.row();
  std::int64_t first = 0;
  for (std::size_t part = 0; part < c.step->weights.size(); ++part) {
    const Weight* weight = c.step->weights[part];
    Step alone = *c.step;
    alone.weights = {weight};
    StepUnit unit;
    unit.row = row;
    unit.part = part;
    unit.first = first;
    unit.segments = {{start + first, start + first, weight->rows}};
    unit.expected = expected_of(c, config, alone, row);
    units.push_back(std::move(unit));
    first += weight->rows;
  }
  if (first != c.a.shape.row()) fail(c, "the weights' rows are not the output's columns");
}

void add_samples(const StepCase& c, const ModelConfig& config, int row, std::vector<StepUnit>& units) {
  const Pair pair{{c.stage, c.step->layer}, c.a, c.b, c.routing_a, c.routing_b, c.first_position};
  for (SampleSegments& sample : samples_of_row(pair, row).samples) {
    StepUnit unit;
    unit.row = row;
    unit.expert = sample.expert;
    unit.segments = std::move(sample.segments);
    if (unit.expert >= 0) {
      const std::int64_t width = c.a.shape.row() / config.used;
      unit.slot = static_cast<int>(unit.segments[0].a / width % config.used);
    }
    unit.expected = expected_of(c, config, *c.step, row);
    units.push_back(std::move(unit));
  }
}

// Column of element i within its row, or its slot.
std::int64_t column_of(const StepCase& c, const StepUnit& unit, std::int64_t i) {
  const std::int64_t width = unit.expert >= 0 ? unit.size : c.a.shape.row();
  return unit.in_a(i) % width;
}

using Ranges = std::vector<std::pair<std::int64_t, std::int64_t>>;

// Ascending columns as ranges; a gap is filled when the range stays nearly full.
Ranges ranges_of(const std::vector<std::int64_t>& columns) {
  Ranges ranges;
  std::int64_t held = 0;  // columns within the last range
  for (std::int64_t column : columns) {
    const std::int64_t from = ranges.empty() ? 0 : ranges.back().first;
    if (!ranges.empty() && static_cast<double>(held + 1) >= nearly_all * static_cast<double>(column - from + 1)) {
      ranges.back().second = column;
      ++held;
    } else {
      ranges.push_back({column, column});
      held = 1;
    }
  }
  return ranges;
}

// The step between columns that are spread evenly, with few missing; 0 when they are not.
std::int64_t stride_of(const std::vector<std::int64_t>& columns) {
  if (columns.size() < 4) return 0;
  std::int64_t stride = 0;
  for (std::int64_t column : columns) stride = std::gcd(stride, column - columns.front());
  const std::int64_t places = (columns.back() - columns.front()) / std::max<std::int64_t>(stride, 1) + 1;
  return stride > 1 && static_cast<double>(columns.size()) >= nearly_all * static_cast<double>(places) ? stride : 0;
}

std::string range_text(std::pair<std::int64_t, std::int64_t> range) {
  return range.first == range.second ? fmt::format("{}", range.first)
                                     : fmt::format("{}..{}", range.first, range.second);
}

std::string columns_text(const std::vector<std::int64_t>& columns, const Ranges& ranges, std::int64_t width) {
  const std::int64_t covered = ranges.empty() ? 0 : ranges.back().second - ranges.front().first + 1;
  if (ranges.size() == 1 && static_cast<double>(covered) >= nearly_all * static_cast<double>(width))
    return "all columns";
  if (columns.size() == 1) return fmt::format("column {}", columns.front());
  if (const std::int64_t stride = stride_of(columns))
    return fmt::format("every {}th column from {} to {}", stride, columns.front(), columns.back());
  if (ranges.size() > most_ranges)
    return fmt::format("{} columns between {} and {}", columns.size(), columns.front(), columns.back());
  std::string text = "columns ";
  for (const auto& range : ranges) text += fmt::format("{}{}", &range == &ranges[0] ? "" : ", ", range_text(range));
  return text;
}

std::string rows_text(const std::vector<int>& positions, std::size_t all) {
  if (positions.size() == all) return all == 1 ? fmt::format("position {}, the only one", positions[0]) : "all rows";
  Ranges ranges;
  for (int position : positions)
    if (!ranges.empty() && ranges.back().second == position - 1)
      ranges.back().second = position;
    else
      ranges.push_back({position, position});
  if (ranges.size() > most_ranges) return fmt::format("{} of {} rows", positions.size(), all);
  std::string text = positions.size() == 1 ? "position " : "positions ";
  for (const auto& range : ranges) text += fmt::format("{}{}", &range == &ranges[0] ? "" : ", ", range_text(range));
  return text;
}

std::string experts_text(const std::vector<Footprint::Part>& experts, std::size_t ran) {
  if (experts.size() == ran && ran > 1) return "all experts that ran";
  if (experts.size() > most_ranges) return fmt::format("{} of the {} experts that ran", experts.size(), ran);
  std::string text = experts.size() == 1 ? "expert " : "experts ";
  for (const auto& part : experts) text += fmt::format("{}{}", &part == &experts[0] ? "" : ", ", part.expert);
  const bool whole = std::all_of(experts.begin(), experts.end(), [](const auto& p) { return p.rows == p.all_rows; });
  return text + (experts.size() < ran ? " only" : "") + (whole ? ", all its rows" : "");
}

}  // namespace

double value_at(const Tensor& tensor, std::int64_t i) {
  switch (tensor.dtype) {
    case DType::f32: return tensor.as<float>()[i];
    case DType::f64: return tensor.as<double>()[i];
    case DType::i32: return tensor.as<std::int32_t>()[i];
  }
  return 0;
}

void check_case(const StepCase& c, const ModelConfig& config) {
  if (std::find(c.step->out.begin(), c.step->out.end(), c.stage) == c.step->out.end())
    fail(c, "the step does not write this stage");
  if (!c.a || !c.b || c.a.shape != c.b.shape) fail(c, "the lane's and the oracle's output differ in shape");
  if (c.a.shape[0] == 0) fail(c, "there are no rows");
  const int sequence = c.a.shape.rank == 3 ? static_cast<int>(c.a.shape[2]) : 0;
  if (c.a.shape != config.shape_of(c.stage, c.a.shape[0], sequence)) fail(c, "the output has not the stage's shape");
  for (std::size_t i = 0; i < c.step->in.size(); ++i) {
    if (!c.in[i]) continue;
    const bool history = i == 1 && reads_cache(*c.step);
    const std::int64_t rows = c.a.shape[0] + (history ? c.first_position : 0);
    const int width = c.in[i].shape.rank == 3 ? static_cast<int>(c.in[i].shape[2]) : 0;
    if (c.in[i].shape != config.shape_of(c.step->in[i], rows, width))
      fail(c, fmt::format("{} has not its stage's shape, or not {} rows", name_of(c.step->in[i]), rows));
  }
  if (info(c.stage).payload == Payload::indices) {
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
  for (int row = 0; row < static_cast<int>(c.a.shape[0]); ++row)
    if (c.step->op == Op::linear)
      add_parts(c, config, row, units);
    else
      add_samples(c, config, row, units);
  for (StepUnit& unit : units) measure(c, unit);
  return units;
}

std::vector<std::int64_t> wrong_elements(const StepCase& c, const StepUnit& unit, double of_the_worst) {
  std::vector<double> off(static_cast<std::size_t>(unit.size));  // in expected errors
  double worst = 0;
  for (std::int64_t i = 0; i < unit.size; ++i) {
    const double b = value_at(c.b, unit.in_b(i)), difference = std::fabs(value_at(c.a, unit.in_a(i)) - b);
    off[static_cast<std::size_t>(i)] = difference / unit.tolerance(1, std::fabs(b));
    if (std::isfinite(difference)) worst = std::max(worst, off[static_cast<std::size_t>(i)]);
  }
  std::vector<std::int64_t> wrong;
  for (std::int64_t i = 0; i < unit.size; ++i)
    if (!(off[static_cast<std::size_t>(i)] <= std::max(element_error, of_the_worst * worst))) wrong.push_back(i);
  return wrong;
}

double error_of(const StepCase& c, const StepUnit& unit, std::span<const std::int64_t> elements,
                std::span<const double> predicted) {
  const double largest =
      c.a.dtype == DType::f32 ? std::numeric_limits<float>::max() : std::numeric_limits<double>::max();
  double off = 0, all = 0, count = 0;
  for (std::size_t k = 0; k < elements.size(); ++k) {
    const double a = value_at(c.a, unit.in_a(elements[k])), p = predicted[k];
    const bool finite = std::fabs(p) <= largest;  // false for NaN
    if (finite != std::isfinite(a) && std::fmin(std::fabs(p), std::fabs(a)) > largest / 1e4) continue;
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

Footprint footprint_of(const StepCase& c, const std::vector<StepUnit>& units) {
  Footprint print;
  std::vector<bool> is_wrong(static_cast<std::size_t>(c.a.shape.row()));  // by column
  std::set<int> positions, rows;
  std::map<int, Footprint::Part> experts;
  for (const StepUnit& unit : units) {
    print.compared += unit.size;
    rows.insert(unit.row);
    Footprint::Part& part = experts[unit.expert];
    part.expert = unit.expert;
    ++part.all_rows;
    if (!unit.fails) continue;
    const auto wrong = wrong_elements(c, unit, small_beside_worst);
    print.wrong += static_cast<std::int64_t>(wrong.size());
    for (std::int64_t i : wrong) is_wrong[static_cast<std::size_t>(column_of(c, unit, i))] = true;
    positions.insert(c.first_position + unit.row);
    ++part.rows;
  }
  if (positions.empty()) return print;
  print.positions.assign(positions.begin(), positions.end());
  std::vector<std::int64_t> columns;
  for (std::size_t i = 0; i < is_wrong.size(); ++i)
    if (is_wrong[i]) columns.push_back(static_cast<std::int64_t>(i));
  print.columns = ranges_of(columns);
  std::size_t ran = 0;
  for (const auto& [id, part] : experts) {
    if (id < 0) continue;
    ++ran;
    if (part.rows > 0) print.experts.push_back(part);
  }
  const std::int64_t width = units[0].expert >= 0 ? units[0].size : c.a.shape.row();
  print.text =
      fmt::format("{} of {}", columns_text(columns, print.columns, width), rows_text(print.positions, rows.size()));
  if (ran > 0) print.text = fmt::format("{}; {}", experts_text(print.experts, ran), print.text);
  return print;
}

}  // namespace moe_diag
