// SPDX-License-Identifier: MIT
#include "core/kernel/allowed_error.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <random>

#include "core/api/error.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/step_case.hpp"
#include "core/text/nearest.hpp"

namespace moe_diag {
namespace {

double predicted(const LaneNumerics& lane, const Step& step, const ModelConfig& config, const SpanValues& exact,
                 const LaneNumerics& oracle) {
  const auto error = expected_error(lane, step, config, exact.total(), oracle);
  if (!error) throw Error(ErrorKind::usage, "--numerics: " + unknown("numerics", lane.name, known_numerics()));
  return *error;
}

// The error of one row: matmuls with one value may cancel.
double predicted_of_row(const LaneNumerics& lane, const Span& span, const ModelConfig& config, const SpanValues& exact,
                        std::int64_t row) {
  const Step& step = span.steps.back();
  const double error = predicted(lane, step, config, exact, expected_numerics(span));
  const host::Values result = exact.row(step.out[step.out.size() - 1], row);
  if (result.size() != 1 || step.in.size() == 0) return error;
  return error * cancellation(step, exact.row(step.in[0], row), result[0]);
}

// Evenly distributed noise of that relative error in every vector of a stage: a row, or an expert's slot of it. Zeros
// are no part of it: keys that a row does not see. From the generator's own numbers, so that every machine has the
// same.
void add_noise(host::Values& values, std::size_t width, double error, std::mt19937_64& random) {
  for (std::size_t at = 0; at + width <= values.size(); at += width) {
    double squares = 0;
    std::size_t count = 0;
    for (std::size_t i = 0; i < width; ++i) {
      squares += values[at + i] * values[at + i];
      if (values[at + i] != 0) ++count;
    }
    const double size = error * std::sqrt(3 * squares / static_cast<double>(std::max<std::size_t>(count, 1)));
    for (std::size_t i = 0; i < width; ++i)
      values[at + i] += size * (2 * (static_cast<double>(random() >> 11) * 0x1p-53) - 1);
  }
}

// What the arithmetic of a step errs by: what the engine reads and stores is computed.
LaneNumerics arithmetic(const Span& span, const std::string& numerics) {
  LaneNumerics lane(numerics);
  if (span.reads) lane.reads = "exact";
  return lane;
}

// The squared relative error of each row that all steps but the last one cause.
std::vector<double> squares_before_last(const Span& span, const ModelConfig& config, const LaneNumerics& lane,
                                        const SpanValues& exact) {
  std::vector<double> squares(static_cast<std::size_t>(exact.rows()), 0);
  if (span.steps.size() == 1) return squares;
  std::mt19937_64 random(1);
  SpanValues noisy = exact;
  for (std::size_t i = 0; i < span.steps.size(); ++i) {
    const Step& step = span.steps[i];
    const StepInputs inputs = inputs_of(step, config, noisy);
    for (std::size_t output = 0; output < step.out.size(); ++output) {
      host::Values values = unrounded(span, step, config, inputs, nullptr, output);
      const Shape shape = config.shape_of({step.out[output], span.layer}, 1, exact.total());
      if (i + 1 < span.steps.size())
        add_noise(values, static_cast<std::size_t>(shape[shape.rank - 1]), predicted(lane, step, config, exact, "f64"),
                  random);
      noisy.of[step.out[output]] = kept(span, step.out[output], std::move(values));
    }
  }
  for (std::int64_t r = 0; r < exact.rows(); ++r) {
    const host::Values a = noisy.row(span.output, r), b = exact.row(span.output, r);
    double off = 0, all = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      off += (a[i] - b[i]) * (a[i] - b[i]);
      all += b[i] * b[i];
    }
    if (all > 0) squares[static_cast<std::size_t>(r)] = off / all;
  }
  return squares;
}

}  // namespace

std::vector<std::string> known_numerics() {
  std::vector<std::string> names;
  for (const NamedNumerics& row : all_named_numerics())
    if (row.values == DType::f32) names.emplace_back(row.name);
  return names;
}

LaneNumerics kernel_numerics(const std::string& numerics, const Span& span, DType type) {
  LaneNumerics lane(numerics);
  if (span.reads) lane.reads = span.reads->name;
  lane.storage = span.storage;
  lane.storage.resize(span.output.siblings().size(), DType::f32);
  DType& own = lane.storage[span.output.index()];
  if (own == DType::f32) own = type;
  return lane;
}

LaneNumerics expected_numerics(const Span& span) {
  LaneNumerics lane("f64");
  if (span.reads) lane.reads = span.reads->name;
  if (!span.storage.empty()) lane.storage = span.storage;
  for (DType& type : lane.storage)
    if (type == DType::f32) type = DType::f64;
  return lane;
}

AllowedErrors allowed_errors(const Span& span, const ModelConfig& config, const std::string& numerics,
                             const SpanValues& exact) {
  const std::vector<double> before = squares_before_last(span, config, arithmetic(span, numerics), exact);
  AllowedErrors allowed;
  for (const DType type : output_types) {
    const LaneNumerics lane = kernel_numerics(numerics, span, type);
    for (std::int64_t r = 0; r < exact.rows(); ++r) {
      const double last = predicted_of_row(lane, span, config, exact, r);
      allowed[type].push_back(failing_error * std::sqrt(before[static_cast<std::size_t>(r)] + last * last));
    }
  }
  return allowed;
}

}  // namespace moe_diag
