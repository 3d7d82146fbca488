// SPDX-License-Identifier: MIT
#include "core/verdict/sampling.hpp"

#include <fmt/format.h>

#include <cmath>
#include <optional>
#include <utility>

#include "core/verdict/metric_value.hpp"

namespace moe_diag {
namespace {

// Samples one row, which it is made for.
class RowSampler {
 public:
  RowSampler(const WatchedFalsifier& watched, Comparisons& compared, int row, FloorPool* pool)
      : watched_(watched), spec_(*watched.spec), compared_(compared), row_(row), pool_(pool) {
    sample_.prompt = compared.prompt();
    sample_.position = compared.position(row);
    sample_.site = compared.site();
    sample_.bound = watched.bound_at(sample_.site);
  }

  Sampled sampled() {
    if (watched_.against < 0)
      sample_one_lane();
    else if (is_of_routing(spec_.metric) && !compared_.chose_by_numbers(watched_.against, row_))
      leave_out(watched_.against);
    else if (spec_.metric == Metric::routing_real_flips)
      sample_flips();
    else if (const auto value = value_of_row(spec_, pair(), row_))
      sample_whole_row(*value);
    else {
      sample_values();
      sample_unshared();
    }
    return std::move(sampled_);
  }

 private:
  const Pair& pair() { return compared_.pair(watched_.lane, watched_.against); }
  const Comparisons::Row& measured() { return compared_.row(watched_.lane, watched_.against, row_); }

  void add(double value) {
    sample_.value = value;
    sampled_.samples.push_back(sample_);
  }
  void leave_out(int lane) { sampled_.left_out.push_back({sample_, lane}); }

  void sample_one_lane() {
    const Tensor values = compared_.tensor(watched_.lane);
    if (spec_.metric == Metric::router_sum_error) {
      const std::int64_t size = values.shape.row();
      return add(std::fabs(sum(values, row_ * size, size) - 1));
    }
    for (const SampleSegments& s : compared_.alone(watched_.lane, row_)) {
      if (!watched_.watches(s.expert)) continue;
      sampled_.experts.push_back(s.expert);
      sample_.expert = s.expert;
      add(count_nonfinite(values, s.segments));
    }
  }

  void sample_flips() {
    sample_.flips = flips_of_row(compared_.routing(watched_.lane, watched_.against), row_);
    double real = 0;
    for (const Flip& flip : sample_.flips) {
      real += flip.kind == FlipKind::real;
      ++sampled_.flips[static_cast<std::size_t>(flip.kind)];
    }
    add(real);
  }

  void sample_whole_row(double value) {
    const Pair& both = pair();
    if (!is_row_finite(both.b, row_)) return leave_out(watched_.against);
    if (spec_.metric == Metric::routing_flips && value > 0)
      sample_.flips = misnamed_of_row(both.a, both.b, row_, both.experts);
    add(value);
  }

  // What both lanes computed: a sample for each expert of the row, or one for all of it.
  void sample_values() {
    for (const Comparisons::Measured& m : measured().samples) {
      if (!watched_.watches(m.segments.expert)) continue;
      sampled_.experts.push_back(m.segments.expert);
      sample_.expert = m.segments.expert;
      sample_.measure = m.measure;
      if (m.measure.nonfinite_b > 0)
        leave_out(watched_.against);
      else if (spec_.metric == Metric::noise_ratio)
        sample_noise(m);
      else
        add(value_of_segments(spec_, pair(), m.segments, m.measure));
    }
  }

  void sample_noise(const Comparisons::Measured& measured) {
    if (watched_.floor < 0) {
      const auto expected = compared_.expected_error(watched_.lane, watched_.against, measured);
      if (expected) add(noise_ratio(measured.measure.rel_l2(), *expected));
      return;
    }
    const auto floor = compared_.floor(watched_.floor, watched_.against, watched_.lane, measured.segments);
    sampled_.without_floor += !floor || floor->is_of_others;
    if (floor && std::isnan(floor->error))
      leave_out(watched_.floor);
    else if (floor)
      add(noise_ratio(measured.measure.rel_l2(), pool_ ? pool_->with(floor->error) : floor->error));
  }

  // What only the judged lane computed cannot be compared, but it can be seen to be finite.
  void sample_unshared() {
    const std::vector<SampleSegments>& alone = measured().alone;
    const bool by_numbers = alone.empty() || compared_.chose_by_numbers(watched_.against, row_);
    sample_.measure = {};
    for (const SampleSegments& s : alone) {
      if (!watched_.watches(s.expert)) continue;
      ++sampled_.skipped_experts;
      sample_.expert = s.expert;
      if (!by_numbers)
        leave_out(watched_.against);
      else if (spec_.metric == Metric::nonfinite_beyond)
        add(count_nonfinite(pair().a, s.segments));
    }
  }

  const WatchedFalsifier& watched_;
  const FalsifierSpec& spec_;
  Comparisons& compared_;
  const int row_;
  FloorPool* const pool_;
  Sample sample_;  // the one at hand: its place stands from the beginning
  Sampled sampled_;
};

}  // namespace

Sampled sample_row(const WatchedFalsifier& watched, Comparisons& compared, int row, bool is_open, FloorPool* pool) {
  if (is_open && compared.may_choose_otherwise(watched.floor, watched.against, row)) {
    Sampled sampled;
    sampled.undecided = 1;
    return sampled;
  }
  return RowSampler(watched, compared, row, pool).sampled();
}

std::string lacking(const WatchedFalsifier& watched, Comparisons& compared) {
  const auto lacks = [](const char* whose, Stage stage) {
    return fmt::format("{} lane has no {}", whose, name_of(stage));
  };
  const Stage stage = compared.site().stage;
  if (!compared.tensor(watched.lane)) return lacks("the judged", stage);
  if (watched.against < 0) {
    const bool tells_experts = watched.experts.empty() || compared.pair(watched.lane, watched.lane).routing_a;
    return tells_experts ? "" : lacks("the judged", stage.sibling(Role::choice));
  }
  if (!compared.tensor(watched.against)) return lacks("the other", stage);
  if (watched.floor >= 0 && !compared.tensor(watched.floor)) return lacks("the floor's", stage);
  if (is_per_expert(stage))
    for (int lane : {watched.lane, watched.floor < 0 ? watched.lane : watched.floor}) {
      const Pair& pair = compared.pair(lane, watched.against);
      if (!pair.routing_a || !pair.routing_b) return lacks("one", stage.sibling(Role::choice));
    }
  if (watched.spec->metric == Metric::routing_real_flips) {
    const Routing& routing = compared.routing(watched.lane, watched.against);
    if (!routing.logits_a || !routing.logits_b) return lacks("one", stage.sibling(Role::router_scores));
  }
  return "";
}

}  // namespace moe_diag
