// SPDX-License-Identifier: MIT
// A state that a step moves on: a lane with inputs from another gets the other's state behind every step, a plain
// operator moves it on like a lane, and a step alone is given what its state is computed from.
#include <algorithm>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "core/forward/given_inputs.hpp"
#include "core/lane/assisted_lane.hpp"
#include "core/ops/plain.hpp"
#include "core/repro/seen_step.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

constexpr CacheInfo count_row{
    .name = "count", .row = {Dim{"1", [](const ModelConfig&, int) -> std::int64_t { return 1; }}}, .is_state = true};
constexpr Cache count(count_row);
const Site counted{stages::post_ffn_residual, 0};

// The state behind one more position. A wrong lane counts too far.
double next(double state, bool wrong) { return wrong ? 2 * (state + 1) : state + 1; }

// A lane whose step `counted` adds the number of positions so far to each value; or leaves it to others to do so.
class CountingLane final : public Lane {
 public:
  enum class Kind { right, wrong, declines };
  CountingLane(std::unique_ptr<Lane> lane, const ModelConfig& config, Kind kind)
      : lane_(std::move(lane)), config_(config), kind_(kind) {}

  Abilities abilities() const override { return {.rewinds = false}; }
  std::size_t supports(std::span<const Step> steps) const override {
    const auto declined = [&](const Step& step) { return kind_ == Kind::declines && has_state(step); };
    return static_cast<std::size_t>(std::find_if(steps.begin(), steps.end(), declined) - steps.begin());
  }
  void begin(const Pass& pass) override {
    pass_ = pass;
    if (pass.first == 0) state_ = 0;
    lane_->begin(pass);
  }
  void run(std::span<const Step> steps) override {
    for (const Step& step : steps) {
      lane_->run({&step, 1});
      if (has_state(step)) add_count();
    }
  }
  Tensor read(Site site, Rows rows) override { return lane_->read(site, rows); }
  void write(Site site, Rows rows, const Tensor& values) override { lane_->write(site, rows, values); }
  Tensor read_cache(Cache cache, int layer, Stretch positions) override {
    if (!info(cache).is_state) return lane_->read_cache(cache, layer, positions);
    return positions.first == position_ ? Tensor{&state_, DType::f64, {1, 1}} : Tensor{};
  }
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override {
    if (!info(cache).is_state) return lane_->write_cache(cache, layer, positions, values);
    state_ = values.value(0);
    position_ = positions.first;
  }

 private:
  void add_count() {
    for (int r = 0; r < pass_.rows(); ++r) {
      state_ = next(state_, kind_ == Kind::wrong);
      const Tensor values = lane_->read(counted, {r, 1});
      std::vector<double> row = host::values_of(values);
      for (double& v : row) v += state_;
      lane_->write(counted, {r, 1}, {row.data(), DType::f64, config_.shape_of(counted, 1, 0)});
    }
    position_ = pass_.first + pass_.rows() - 1;
  }

  const std::unique_ptr<Lane> lane_;
  const ModelConfig& config_;
  const Kind kind_;
  Pass pass_;
  double state_ = 0;
  int position_ = -1;
};

// What such a lane computes, as a plain operator.
host::Values add_with_count(const StepRows& rows) {
  double state = rows.inputs.states[0][0];
  return rows.by_row([&](std::size_t r) {
    state = next(state, false);
    host::Values row = host::add(rows.row(0, r), rows.row(1, r));
    for (double& v : row) v += state;
    return row;
  });
}
host::Values count_behind(const StepRows& rows, std::size_t) {
  return {rows.inputs.states[0][0] + static_cast<double>(rows.count())};
}
const Operator counting_op{.name = "add", .compute = add_with_count, .next_state = count_behind};
const Operator& counting(Op op) { return op == Op::add ? counting_op : operator_of(op); }

// Two lanes of a model in which one step moves a state on; no architecture here has one.
class TwoLanes {
 public:
  explicit TwoLanes(CountingLane::Kind second, bool is_fed)
      : lockstep(
            Model::synthetic({.layers = 2}),
            {lane_spec("right", {{"numerics", "f64"}}),
             lane_spec("second", is_fed ? Keys{{"numerics", "f64"}, {"inputs", "right"}} : Keys{{"numerics", "f64"}})},
            6) {
    auto& program = const_cast<Program&>(lockstep.lanes().program(0));
    for (Step& step : program)
      if (step.layer == counted.layer && step.out[0] == counted.stage) step.caches.push_back({count, -1, 0});
    attach(0, CountingLane::Kind::right);
    attach(1, second);
  }

  double added(const Recorder& seen, int position) const {
    const std::int64_t width = lockstep.model().config().hidden;
    const auto value = [&](int lane) { return seen.all().at({lane, counted}).tensor().value(position * width + 3); };
    return value(1) - value(0);
  }

  Lockstep lockstep;

 private:
  void attach(std::size_t i, CountingLane::Kind kind) {
    RunningLane& lane = lockstep.lanes()[i];
    const ModelConfig& config = lockstep.model().config();
    std::unique_ptr<Lane> own = std::make_unique<CountingLane>(lane.replace(nullptr), config, kind);
    if (kind == CountingLane::Kind::declines)
      own = std::make_unique<AssistedLane>(std::move(own), config, lockstep.lanes().program(0), counting);
    lane.attach(std::move(own));
  }
};

const std::vector<std::int32_t> tokens = {5, 9, 26, 7, 1, 2};

}  // namespace

TEST_CASE("a fed lane's state is its feeder's behind each step, so that one pass shows one pass's error") {
  TwoLanes lanes(CountingLane::Kind::wrong, true);
  const Recorder seen = lanes.lockstep.record(tokens, 3);
  CHECK(lanes.added(seen, 0) == Approx(2 - 1));
  CHECK(lanes.added(seen, 2) == Approx(14 - 3));
  CHECK(lanes.added(seen, 3) == Approx(2 * (3 + 1) - 4));
  TwoLanes free(CountingLane::Kind::wrong, false);
  CHECK(free.added(free.lockstep.record(tokens, 3), 3) == Approx(2 * (14 + 1) - 4));
}

TEST_CASE("a fed lane that begins late takes the state behind the positions before over") {
  TwoLanes lanes(CountingLane::Kind::wrong, true);
  lanes.lockstep.record_passes(tokens, {3}, {true, false});
  const Recorder seen = lanes.lockstep.record_passes(tokens, {6}, {true, true}, 3);
  CHECK(lanes.added(seen, 0) == Approx(2 * (3 + 1) - 4));
}

TEST_CASE("a plain operator moves the state of a lane that declines its step on") {
  for (const int chunk : {1, 4, 6}) {
    TwoLanes lanes(CountingLane::Kind::declines, false);
    const Recorder seen = lanes.lockstep.record(tokens, chunk);
    for (int position = 0; position < 6; ++position) CHECK(std::fabs(lanes.added(seen, position)) < 1e-12);
  }
}

TEST_CASE("a step that moves a state on is kept with what it read at all positions so far") {
  TwoLanes lanes(CountingLane::Kind::right, false);
  const Program& program = lanes.lockstep.lanes().program(0);
  const Step& step = *find_step(program, counted);
  for (const Stage stage : step.in) CHECK(is_of_all_positions(step, stage));
  StepWatcher watcher(program, {0, 5, counted, 0, -1});
  lanes.lockstep.run(tokens, {&watcher}, {}, 2);
  REQUIRE(watcher.seen().first == 4);
  for (const GivenValues& input : watcher.seen().inputs) CHECK(input.shape[0] == 6);
}

}  // namespace moe_diag::test
