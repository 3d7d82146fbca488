// SPDX-License-Identifier: MIT
#include "core/conformance/step_checks.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>

#include "core/conformance/made_inputs.hpp"
#include "core/conformance/plain_pass.hpp"
#include "core/conformance/walked_lane.hpp"
#include "core/ops/numerics.hpp"
#include "core/ops/rounding.hpp"

namespace moe_diag {
namespace {

constexpr double nan = std::numeric_limits<double>::quiet_NaN(), infinity = std::numeric_limits<double>::infinity();

host::Values first_rows(const host::Values& values, std::size_t rows, std::size_t of) {
  return {values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / of * rows)};
}

// The first rows of a plain step.
JudgedStep prepared(const TriedLane& lane, std::size_t index, int rows, const InputSpec& spec) {
  const TriedModel& model = lane.model();
  const PlainStep& plain = plain_step(model, index, rows, spec);
  const std::size_t all = plain.inputs.positions.size(), count = static_cast<std::size_t>(rows);
  JudgedStep judged;
  judged.model = &model;
  judged.step = &model.program[index];
  judged.what = fmt::format("{}, {}", lane.place(), spec.text());
  judged.inputs.positions.assign(plain.inputs.positions.begin(), plain.inputs.positions.begin() + rows);
  judged.inputs.tokens.assign(plain.inputs.tokens.begin(), plain.inputs.tokens.begin() + rows);
  judged.inputs.total = rows;
  for (std::size_t i = 0; i < judged.step->in.size(); ++i)
    judged.inputs.in[i] = first_rows(plain.inputs.in[i], count, all);
  for (const host::Values& out : plain.out) judged.right.push_back(first_rows(out, count, all));
  return judged;
}

// What the step reads of inputs that were written: those that go into a cache as it has them.
StepInputs as_read(const JudgedStep& judged) {
  StepInputs inputs = judged.inputs;
  for (std::size_t i = 0; i < judged.step->in.size(); ++i)
    if (judged.step->cached(i))
      inputs.in[i] = cached_columns(*judged.model, *judged.step, i, inputs.in[i], judged.rows());
  return inputs;
}

void compute_right(JudgedStep& judged) {
  const StepInputs inputs = as_read(judged);
  for (std::size_t o = 0; o < judged.right.size(); ++o)
    judged.right[o] = compute(*judged.step, judged.model->config(), inputs, nullptr, o);
}

// Rounds the inputs to the types that the lane stores them in, and says whether that changed them.
bool round_inputs(JudgedStep& judged, const Description& description) {
  bool is_changed = false;
  for (std::size_t i = 0; i < judged.step->in.size(); ++i) {
    const Stage stage = judged.step->in[i];
    const DType type = description.stored(stage);
    if (payload_of(stage) == Payload::indices || type == DType::f32 || type == DType::f64) continue;
    judged.inputs.in[i] = rounded_to(std::move(judged.inputs.in[i]), type);
    is_changed = true;
  }
  return is_changed;
}

// Writes the inputs, poisons the outputs, runs the step and copies what it wrote.
void run(TriedLane& lane, JudgedStep& judged, double poison = nan) {
  const Step& step = *judged.step;
  const std::vector<Site> sites = inputs_of(lane.model().program, {step.out[0], step.layer});
  for (std::size_t i = 0; i < sites.size(); ++i) lane.write_all(sites[i], judged.inputs.in[i]);
  lane.poison(step, poison);
  lane.run({&step, 1});
  judged.out.clear();
  for (const Stage stage : step.out) judged.out.push_back(lane.read_all({stage, step.layer}));
}

// Values that kept what stood there before the step, whatever that was.
std::string unwritten(TriedLane& lane, JudgedStep judged) {
  constexpr double other = 12345;
  const std::vector<CopiedTensor> before = judged.out;
  run(lane, judged, other);
  for (std::size_t o = 0; o < before.size(); ++o)
    for (std::int64_t i = 0; i < before[o].shape.count(); ++i)
      if (std::isnan(before[o].view().value(i)) && judged.out[o].view().value(i) == other)
        return "; the step leaves values unwritten: they are as they were before it";
  return "";
}

std::string failure_after(TriedLane& lane, const JudgedStep& judged, const LaneNumerics& numerics,
                          const LaneNumerics& oracle) {
  const std::string failure = failure_of(judged, numerics, oracle);
  return failure.empty() ? "" : failure + unwritten(lane, judged);
}

// Calls `look(lane, index)` for every step that the backend computes alone, of every model that it takes, in passes of
// these numbers of rows; up to the first failure.
template <class Look>
Seen for_each_step(BackendTrial& t, std::span<const int> rows, Look look) {
  std::int64_t looked = 0;
  for (const TriedModel& model : tried_models()) {
    const std::unique_ptr<TriedLane> lane = t.open(model);
    if (!lane) continue;
    if (!lane->abilities().recomputes) return not_tried("it does not run a step on inputs that are written to it");
    std::vector<std::size_t> own;
    for (const std::size_t step : model.steps)
      if (lane->computes(model.program[step])) own.push_back(step);
    for (const int count : rows) {
      if (count > rows_of(model)) continue;
      const std::vector<std::int32_t> tokens = made_tokens(model.config(), count);
      lane->begin_at(tokens);
      for (const std::size_t step : own) {
        ++looked;
        if (std::string failure = look(*lane, step); !failure.empty()) return failed(std::move(failure));
      }
    }
  }
  return looked > 0 ? Seen() : not_tried("it computes no step alone");
}

// How the first input of a product is read, where it is rounded: the same for all of its weights, in whole blocks.
std::optional<host::Rounding> reading_of(const Step& step, const LaneNumerics& lane) {
  if (!is_product(operator_of(step))) return std::nullopt;
  const Reads* reads = find_reads(lane.reads.empty() ? lane.name : lane.reads);
  if (!reads) return std::nullopt;
  const auto way = reads->of(step.weights[0]->type);
  for (const Weight* weight : step.weights)
    if (reads->of(weight->type) != way || (way && weight->cols % host::block_of(*way) != 0)) return std::nullopt;
  return way;
}

// The values that the step gives for zeros: a lane may read denormal values so.
std::string failure_beside_zeros(TriedLane& lane, const JudgedStep& judged, const LaneNumerics& numerics,
                                 const LaneNumerics& oracle) {
  std::string failure = failure_of(judged, numerics, oracle);
  if (failure.empty()) return "";
  JudgedStep zeros = judged;
  for (host::Values& in : zeros.inputs.in) std::fill(in.begin(), in.end(), 0.0);
  for (std::size_t i = 0; i < judged.step->in.size(); ++i)
    if (payload_of(judged.step->in[i]) == Payload::indices) zeros.inputs.in[i] = judged.inputs.in[i];
  compute_right(zeros);
  for (std::size_t o = 0; o < judged.out.size(); ++o) {
    double most = 0;
    for (std::size_t i = 0; i < judged.right[o].size(); ++i)
      most = std::max(most, std::fabs(judged.right[o][i] - zeros.right[o][i]));
    for (std::int64_t i = 0; i < judged.out[o].shape.count(); ++i) {
      const auto at = static_cast<std::size_t>(i);
      const double a = judged.out[o].view().value(i), b = judged.right[o][at];
      if (!(std::fabs(a - b) <= 2 * most + 1e-5 * std::fabs(b))) return failure + unwritten(lane, judged);
    }
  }
  return "";
}

std::string try_extreme(TriedLane& lane, std::size_t index, Making making) {
  const LaneNumerics numerics = numerics_of(lane);
  LaneNumerics oracle = on_inputs_of(numerics);
  const auto is_f16 = [&](Stage stage) { return lane.description().stored(stage) == DType::f16; };
  const Stages stages = lane.model().config().stages;
  const bool is_narrow = std::any_of(stages.begin(), stages.end(), is_f16) || !numerics.kv_cache.empty();
  JudgedStep judged = prepared(lane, index, lane.pass().rows(), {making, false, is_narrow ? 100.0 : 1e10});
  bool is_other = round_inputs(judged, lane.description());
  run(lane, judged);
  JudgedStep read = judged;
  if (const auto way = reading_of(*judged.step, numerics)) {
    read.inputs.in[0] = host::rounded(judged.inputs.in[0], *way, judged.step->weights[0]->cols);
    oracle.reads = numerics.reads.empty() ? numerics.name : numerics.reads;
    is_other = true;
  }
  if (is_other) compute_right(read);
  if (making == Making::denormal) return failure_beside_zeros(lane, read, numerics, oracle);
  const std::string failure = failure_of(read, numerics, oracle);
  return failure.empty() ? "" : failure + unwritten(lane, judged);
}

// FP8 and FP4 have no infinity.
bool keeps_infinity(const LaneNumerics& lane) {
  return !lane.reads.starts_with("fp8") && !lane.reads.starts_with("mx");
}

// Values of the bad row that are finite though they depend on it.
std::string lost(const JudgedStep& judged, int row, double bad) {
  const auto r = static_cast<std::size_t>(row);
  JudgedStep own = judged;
  if (!has_keys(*judged.step)) {
    own.inputs.positions = {row};
    for (std::size_t i = 0; i < judged.step->in.size(); ++i) {
      const std::size_t width = judged.inputs.in[i].size() / judged.rows();
      const auto at = judged.inputs.in[i].begin() + static_cast<std::ptrdiff_t>(r * width);
      own.inputs.in[i].assign(at, at + static_cast<std::ptrdiff_t>(width));
    }
    own.inputs.tokens = {judged.inputs.tokens[r]};
  }
  compute_right(own);
  for (std::size_t o = 0; o < judged.out.size(); ++o) {
    if (payload_of(judged.step->out[o]) == Payload::indices) return "";  // a choice among NaN is any
    const std::int64_t width = judged.out[o].shape.row();
    const std::size_t from = own.right[o].size() - static_cast<std::size_t>(width);
    for (std::int64_t i = 0; i < width; ++i) {
      const double expected = own.right[o][from + static_cast<std::size_t>(i)];
      const double found = judged.out[o].view().value(row * width + i);
      if (std::isnan(expected) && std::isfinite(found))
        return fmt::format("{}, {}: position {}, value {} of {}: expected {}, found {:.9g}: it is lost",
                           text_of(*judged.step, o), judged.what, row, i, width, bad, found);
    }
  }
  return "";
}

// Passes of fewer rows get one value that is not finite; longer ones, a whole row.
constexpr int few_rows = 10;

std::string try_bad_row(TriedLane& lane, std::size_t index, std::size_t input, double bad) {
  const LaneNumerics numerics = numerics_of(lane);
  const int rows = lane.pass().rows();
  JudgedStep judged = prepared(lane, index, rows, {});
  if (round_inputs(judged, lane.description())) compute_right(judged);
  const Step& step = *judged.step;
  const int row = has_keys(step) || reads_cache(step) ? rows - 1 : rows / 3;
  host::Values& values = judged.inputs.in[input];
  const auto width = static_cast<std::ptrdiff_t>(values.size()) / rows;
  const bool is_one = rows < few_rows;
  const std::ptrdiff_t first = !is_one ? 0 : step.cached(input) ? width - 1 : 5 % width;
  std::fill_n(values.begin() + row * width + first, is_one ? 1 : width, bad);
  judged.what = fmt::format("{}, {} in {}position {} of {}", lane.place(), bad, is_one ? "" : "all of ", row,
                            name_of(step.in[input]));
  run(lane, judged);
  judged.skipped_row = row;
  std::string failure = failure_of(judged, numerics, on_inputs_of(numerics));
  if (failure.empty() && (std::isnan(bad) || keeps_infinity(numerics))) failure = lost(judged, row, bad);
  return failure;
}

// Spans that the backend computes, and not each step of them alone.
std::vector<std::span<const Step>> own_spans(TriedLane& lane) {
  std::vector<std::span<const Step>> spans;
  for (std::span<const Step> rest = lane.model().program; !rest.empty();) {
    const std::size_t own = lane.supports(rest);
    const std::span<const Step> span = rest.first(own);
    if (std::any_of(span.begin(), span.end(), [&](const Step& step) { return !lane.computes(step); }))
      spans.push_back(span);
    rest = rest.subspan(std::max<std::size_t>(own, 1));
  }
  return spans;
}

// The stages that steps read and do not write before.
std::vector<Site> read_by(const TriedModel& model, std::span<const Step> span) {
  std::vector<Site> sites;
  std::vector<Stage> written;
  for (const Step& step : span) {
    for (const Site& site : inputs_of(model.program, {step.out[0], step.layer}))
      if (std::count(written.begin(), written.end(), site.stage) == 0) sites.push_back(site);
    for (const Stage stage : step.out) written.push_back(stage);
  }
  return sites;
}

std::string try_span(TriedLane& lane, std::span<const Step> span, int rows) {
  const TriedModel& model = lane.model();
  const LaneNumerics numerics = numerics_of(lane);
  const std::vector<std::int32_t> tokens = made_tokens(model.config(), rows);
  lane.begin_at(tokens);
  PlainPass pass = plain_pass(model, tokens);
  compute_plainly(model, std::span(model.program).first(static_cast<std::size_t>(&span.front() - model.program.data())),
                  pass);
  for (const Site& site : read_by(model, span)) {
    host::Values& values = pass.of[site.stage.index()];
    if (payload_of(site.stage) == Payload::values) {
      values = rounded_to(rounded_to(std::move(values), DType::f32), lane.description().stored(site.stage));
    }
    lane.write_all(site, values);
  }
  const std::vector<double> allowed = allowed_errors(model, span, pass, numerics);
  compute_plainly(model, span, pass);
  std::vector<Step> steps(span.begin(), span.end());
  for (Step& step : steps) {
    step.want = false;
    lane.poison(step, nan);
  }
  steps.back().want = true;
  lane.run(steps);
  const Step& last = steps.back();
  const Stage stage = last.out[last.out.size() - 1];
  const CopiedTensor found = lane.read_all({stage, last.layer});
  const CopiedTensor right(Tensor{pass.of[stage.index()].data(), DType::f64, found.shape});
  const std::string failure = difference_of(found, right, allowed);
  if (failure.empty()) return "";
  return fmt::format("{} to {}, {}: {}", text_of(span.front()), text_of(last), lane.place(), failure);
}

}  // namespace

LaneNumerics numerics_of(const TriedLane& lane) {
  LaneNumerics numerics(lane.description());
  if (expected_error(numerics, lane.model().program.front(), lane.model().config(), 1)) return numerics;
  throw NotTried{fmt::format(
      "the rounding of numerics '{}' is not known: name f64, f32, bf16, q8_k or q8_1, and how products read "
      "activations in Description::reads",
      numerics.name)};
}

LaneNumerics on_inputs_of(const LaneNumerics& lane) {
  LaneNumerics oracle("f64");
  oracle.values = lane.values;
  oracle.storage = lane.storage;
  return oracle;
}

Seen steps_are_right(BackendTrial& t) {
  return for_each_step(t, row_counts, [](TriedLane& lane, std::size_t index) {
    const LaneNumerics numerics = numerics_of(lane);
    const int rows = lane.pass().rows();
    std::vector<InputSpec> specs{{}};
    if (has_choice(lane.model().program[index]) && rows == skewed_rows) specs.push_back({Making::random, true});
    for (const InputSpec& spec : specs) {
      JudgedStep judged = prepared(lane, index, rows, spec);
      if (round_inputs(judged, lane.description())) compute_right(judged);
      run(lane, judged);
      if (std::string failure = failure_after(lane, judged, numerics, on_inputs_of(numerics)); !failure.empty())
        return failure;
    }
    return std::string();
  });
}

Seen spans_are_right(BackendTrial& t) {
  Seen seen = not_tried("it computes each of its steps alone as well");
  for (const TriedModel& model : tried_models()) {
    const std::unique_ptr<TriedLane> lane = model.is_whole ? t.open(model) : nullptr;
    if (!lane) continue;
    if (!lane->abilities().recomputes) return not_tried("it does not run a step on inputs that are written to it");
    for (const std::span<const Step> span : own_spans(*lane))
      for (const int rows : {1, 2, 7, 16, 33}) {
        seen = {};
        if (std::string failure = try_span(*lane, span, rows); !failure.empty()) return failed(std::move(failure));
      }
  }
  return seen;
}

Seen extremes_are_right(BackendTrial& t) {
  constexpr int rows[] = {extreme_rows};
  return for_each_step(t, rows, [](TriedLane& lane, std::size_t index) {
    for (const Making making : extremes)
      if (std::string failure = try_extreme(lane, index, making); !failure.empty()) return failure;
    return std::string();
  });
}

Seen rows_are_separate(BackendTrial& t) {
  constexpr int rows[] = {3, 33};
  return for_each_step(t, rows, [](TriedLane& lane, std::size_t index) {
    const Step& step = lane.model().program[index];
    for (std::size_t input = 0; input < step.in.size(); ++input)
      for (const double bad : {nan, infinity}) {
        if (payload_of(step.in[input]) == Payload::indices) continue;
        if (std::string failure = try_bad_row(lane, index, input, bad); !failure.empty()) return failure;
      }
    return std::string();
  });
}

Seen steps_repeat(BackendTrial& t) {
  constexpr int rows[] = {1, 33};
  std::unique_ptr<TriedLane> second;
  return for_each_step(t, rows, [&](TriedLane& lane, std::size_t index) {
    JudgedStep judged = prepared(lane, index, lane.pass().rows(), {});
    round_inputs(judged, lane.description());
    run(lane, judged);
    const std::vector<CopiedTensor> before = judged.out;
    if (!second || &second->model() != &lane.model()) second = t.open(lane.model());
    second->begin(lane.pass());
    for (TriedLane* again : {&lane, second.get()}) {
      run(*again, judged);
      for (std::size_t o = 0; o < before.size(); ++o)
        if (const auto at = first_difference(before[o], judged.out[o], judged.step->out[o], 0))
          return fmt::format("{}, {}: value {}: {:.9g} first, {:.9g} {}", text_of(*judged.step, o), judged.what, *at,
                             before[o].view().value(*at), judged.out[o].view().value(*at),
                             again == &lane ? "again" : "in a second lane");
    }
    return std::string();
  });
}

}  // namespace moe_diag
