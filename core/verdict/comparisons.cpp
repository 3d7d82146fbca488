// SPDX-License-Identifier: MIT
#include "core/verdict/comparisons.hpp"

#include <algorithm>
#include <cmath>
#include <functional>

#include "core/ops/combine.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/predicted.hpp"
#include "core/ops/sizes.hpp"
#include "core/ops/softmax.hpp"
#include "core/ops/values.hpp"

namespace moe_diag {

Comparisons::Entry& Comparisons::entry(int lane, int against) {
  const auto [at, fresh] = entries_.try_emplace({lane, against});
  Entry& e = at->second;
  if (!fresh) return e;
  e.pair.site = sighting_.site;
  e.pair.first_position = sighting_.position(0);
  e.pair.a = sighting_.tensor(lane);
  e.pair.b = sighting_.tensor(against);
  e.pair.experts = lanes_.config().experts;
  if (is_per_expert(sighting_.site.stage)) {
    e.pair.routing_a = sighting_.now(lane, Role::choice);
    e.pair.routing_b = sighting_.now(against, Role::choice);
  }
  e.rows.resize(static_cast<std::size_t>(sighting_.rows().count));
  return e;
}

const Pair& Comparisons::pair(int lane, int against) { return entry(lane, against).pair; }

const Comparisons::Row& Comparisons::row(int lane, int against, int row) {
  Entry& e = entry(lane, against);
  std::optional<Row>& measured = e.rows[static_cast<std::size_t>(row)];
  if (measured) return *measured;
  measured.emplace();
  RowSamples samples = samples_of_row(e.pair, row);
  measured->alone = std::move(samples.alone);
  for (SampleSegments& s : samples.samples) {
    Measured m{std::move(s), {}};
    for (const Segment& g : m.segments.segments) m.measure.add(e.pair.a, g.a, e.pair.b, g.b, g.n);
    measured->samples.push_back(std::move(m));
  }
  return *measured;
}

std::vector<SampleSegments> Comparisons::alone(int lane, int row) {
  const Pair& itself = pair(lane, lane);
  const std::int64_t size = itself.a.shape.row();
  if (is_per_expert(itself.site.stage) && !itself.routing_a) return {{row, -1, {{row * size, row * size, size}}}};
  return samples_of_row(itself, row).samples;
}

const Routing& Comparisons::routing(int lane, int against) {
  const auto [at, fresh] = routings_.try_emplace({lane, against});
  if (fresh)
    at->second = {sighting_.tensor(lane), sighting_.tensor(against), sighting_.now(lane, Role::router_scores),
                  sighting_.now(against, Role::router_scores), lanes_.config().experts};
  return at->second;
}

bool Comparisons::chose_by_numbers(int lane, int row) {
  const auto [at, fresh] = weights_.try_emplace(lane);
  if (fresh) at->second = sighting_.now(lane, Role::choice_weights);
  return !at->second || is_row_finite(at->second, row);
}

std::optional<Comparisons::Floor> Comparisons::floor(int floor, int against, int judged, const SampleSegments& sample) {
  const auto [at, fresh] = floors_.try_emplace({floor, against});
  if (fresh) at->second = error_of_pass(floor, against);
  const std::vector<Measured>& own = row(floor, against, sample.row).samples;
  const auto same =
      std::find_if(own.begin(), own.end(), [&](const Measured& m) { return m.segments.expert == sample.expert; });
  const bool is_there = same != own.end();
  if (is_there && std::isnan(same->measure.rel_l2())) return Floor{std::nan("")};
  if (!at->second) return std::nullopt;
  const DType stored = lanes_[static_cast<std::size_t>(judged)].description.stored(site().stage);
  const bool is_of_others = !is_there || went_otherwise(floor, against, sample.row);
  const double of_row = is_of_others ? 0 : same->measure.rel_l2();
  return Floor{std::max({*at->second, rounding_of(stored), of_row}), is_of_others};
}

std::optional<double> Comparisons::error_of_pass(int floor, int against) {
  double squares = 0;
  std::int64_t count = 0;
  for (int r = 0; r < sighting_.rows().count; ++r) {
    if (went_otherwise(floor, against, r)) continue;
    for (const Measured& m : row(floor, against, r).samples) {
      const double error = m.measure.rel_l2();
      if (m.measure.nonfinite_b > 0 || std::isnan(error)) continue;
      squares += error * error;
      ++count;
    }
  }
  return count > 0 ? std::optional(std::sqrt(squares / static_cast<double>(count))) : std::nullopt;
}

// Whether two lanes that chose their experts by themselves chose others, so that all behind is of other experts.
bool Comparisons::went_otherwise(int lane, int against, int row) {
  const Stage choice = site().stage.sibling(Role::choice);
  if (!choice || !comes_before(choice, site().stage) || is_per_expert(site().stage)) return false;
  const Tensor a = sighting_.now(lane, choice), b = sighting_.now(against, choice);
  return a && b && routing_flips(a, b, row, lanes_.config().experts) > 0;
}

bool Comparisons::may_choose_otherwise(int lane, int against, int row) {
  constexpr double beyond = 4;  // the engine's own rounding is not the peer's, and both sides of a margin move
  const Tensor a = sighting_.now(lane, Role::router_scores), b = sighting_.now(against, Role::router_scores);
  if (!a || !b) return true;
  host::Values own = host::values_of(a, row, 1), right = host::values_of(b, row, 1);
  double error = 0;
  for (std::size_t e = 0; e < right.size(); ++e) error = std::max(error, std::fabs(own[e] - right[e]));
  const auto used = static_cast<std::size_t>(lanes_.config().used);
  if (used >= right.size()) return false;
  std::sort(right.begin(), right.end(), std::greater<>());
  return !(right[used - 1] - right[used] > beyond * error);
}

std::optional<double> Comparisons::expected_error(int lane, int against, const Measured& sample) {
  if (numerics_lane_ != lane || numerics_against_ != against) {
    numerics_ = LaneNumerics(lanes_[static_cast<std::size_t>(lane)].computes(site()));
    oracle_ = LaneNumerics(lanes_[static_cast<std::size_t>(against)].computes(site()));
    computed_ = {};
    numerics_lane_ = lane;
    numerics_against_ = against;
  }
  const LaneNumerics &numerics = numerics_, &oracle = oracle_;
  const int row = sample.segments.row;
  const int keys = position(row) + 1;
  auto expected = moe_diag::expected_error(numerics, step(), lanes_.config(), keys, oracle,
                                           moved_by_inputs(against, numerics, oracle, sample.segments));
  if (!expected) return std::nullopt;
  expected = expected_of_all(lanes_[static_cast<std::size_t>(lane)].steps_with(site(), step()), *expected, numerics,
                             lanes_.config(), keys, oracle);
  const Measure& m = sample.measure;
  const double rms = m.count > 0 ? std::sqrt(m.squares_b / static_cast<double>(m.count)) : 0;
  constexpr double suspicious = 3;  // expected errors
  const double of_sample =
      expected_of_values(*expected, numerics.stored(site().stage), rms) * cancellation(against, row);
  return m.rel_l2() > suspicious * of_sample ? of_sample * outliers(against, sample.segments) : of_sample;
}

// How much more a sample is expected to err where massive values, which outweigh all others, cancel in a sum.
double Comparisons::outliers(int lane, const SampleSegments& sample) {
  const Step& product = step();
  const Tensor results = sighting_.tensor(lane);
  if (operator_of(product).adds_experts) {
    const Tensor slots = sighting_.now(lane, product.in[0]);
    return slots
               ? cancellation_of_experts(host::values_of(slots, sample.row, 1), host::values_of(results, sample.row, 1))
               : 1;
  }
  const Tensor input = is_product(operator_of(product)) ? sighting_.now(lane, product.in[0]) : Tensor();
  if (!input || product.weights.size() != 1 || results.shape.row() == 1) return 1;
  const Weight& weight = *product.weights[0];
  host::Values all = host::values_of(input, sample.row, 1), own;
  for (const Segment& s : sample.segments)
    for (std::int64_t i = 0; i < s.n; ++i) own.push_back(value_at(results, s.b + i));
  if (host::size_of(own) != weight.rows) return 1;
  if (host::size_of(all) != weight.cols) {  // a slot of the row
    const std::int64_t slot = sample.segments[0].b / weight.rows % lanes_.config().used;
    all = {all.begin() + slot * weight.cols, all.begin() + (slot + 1) * weight.cols};
  }
  return cancellation_of_outliers(host::Matrix(weight, std::max(sample.expert, 0)), all, own);
}

// The square of what rounding the inputs of `against` as the lane keeps them moves a sample by; none where it is not
// computed.
std::optional<double> Comparisons::moved_by_inputs(int against, const LaneNumerics& lane, const LaneNumerics& oracle,
                                                   const SampleSegments& sample) {
  if (!needs_inputs(lane, step(), oracle)) return std::nullopt;
  const Computed& of_row = computed(against, lane, oracle, sample.row);
  if (of_row.exact.empty()) return std::nullopt;
  const std::int64_t start = sample.row * host::size_of(of_row.exact);
  double squares = 0, all = 0;
  for (const Segment& s : sample.segments)
    for (std::int64_t i = s.b - start; i < s.b - start + s.n; ++i) {
      const double exact = of_row.exact[static_cast<std::size_t>(i)];
      const double off = of_row.moved[static_cast<std::size_t>(i)] - exact;
      squares += off * off;
      all += exact * exact;
    }
  return all > 0 && std::isfinite(squares) ? std::optional(squares / all) : std::nullopt;
}

const Comparisons::Computed& Comparisons::computed(int against, const LaneNumerics& lane, const LaneNumerics& oracle,
                                                   int row) {
  if (computed_.row == row) return computed_;
  computed_ = {row, {}, {}};
  StepInputs inputs;
  inputs.positions = {position(row)};
  inputs.total = sighting_.pass.total;
  for (std::size_t i = 0; i < step().in.size(); ++i) {
    const Stage stage = step().in[i];
    const Tensor values = sighting_.now(against, stage);
    if (!values) return computed_;
    inputs.in[i] = host::values_of(values, row + sighting_.rows().first - sighting_.rows_of(stage).first, 1);
  }
  // Of inputs in f32 only logits are looked at. Below the size that the estimate assumes they move less than it says.
  const auto is_small = [](double x) { return std::fabs(x) <= logit_size; };
  if (lane.stored(step().in[0]) == DType::f32 && std::all_of(inputs.in[0].begin(), inputs.in[0].end(), is_small))
    return computed_;
  computed_.exact = compute(step(), lanes_.config(), inputs, nullptr);
  for (std::size_t i = 0; i < step().in.size(); ++i)
    if (lane.rounds_input(step(), i, oracle)) inputs.in[i] = rounded_to(inputs.in[i], lane.stored(step().in[i]));
  computed_.moved = compute(step(), lanes_.config(), inputs, nullptr);
  return computed_;
}

// The step that wrote the site.
const Step& Comparisons::step() {
  if (!step_) step_ = find_step(program_, sighting_.site);
  return *step_;
}

// How much the row's one value is less than the terms that it is the sum of; see moe_diag::cancellation().
double Comparisons::cancellation(int lane, int row) {
  const Tensor result = sighting_.tensor(lane);
  if (result.shape.row() != 1) return 1;
  const Tensor input = sighting_.now(lane, step().in[0]);
  return input ? moe_diag::cancellation(step(), host::values_of(input, row, 1), value_at(result, row)) : 1;
}

bool is_row_finite(const Tensor& values, int row) {
  const std::int64_t size = values.shape.row();
  return count_nonfinite(values, row * size, size) == 0;
}

double count_nonfinite(const Tensor& a, const std::vector<Segment>& segments) {
  std::int64_t count = 0;
  for (const Segment& s : segments) count += count_nonfinite(a, s.a, s.n);
  return static_cast<double>(count);
}

}  // namespace moe_diag
