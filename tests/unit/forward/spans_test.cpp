// SPDX-License-Identifier: MIT
// What lanes may fuse: each runs up to where somebody looks at it, and no other lane matters.
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

using Spans = std::vector<std::pair<Op, Op>>;  // the first step of each, and the last

// Computes nothing, and counts.
class Counter final : public Lane {
 public:
  explicit Counter(Spans& spans) : spans_(spans) {}
  void begin(const Pass&) override {}
  void run(std::span<const Step> steps) override { spans_.emplace_back(steps.front().op, steps.back().op); }
  Tensor read(Site, Rows) override { return {}; }
  void write(Site, Rows, const Tensor&) override {}
  Abilities abilities() const override { return {.shows_caches = false}; }
  Tensor read_cache(Cache, int, Stretch) override { return {}; }
  void write_cache(Cache, int, Stretch, const Tensor&) override {}

 private:
  Spans& spans_;
};

// Looks at one site of a lane, or at all.
class Look final : public Hook {
 public:
  Look(int lane, std::optional<Site> site) : lane_(lane), site_(site) {}
  bool wants(int, int lane, Site site) const override { return lane == lane_ && (!site_ || site == *site_); }
  void show(Sighting& sighting) override { sighting.tensor(lane_); }

 private:
  const int lane_;
  const std::optional<Site> site_;
};

Spans spans_of_second(const std::vector<Hook*>& hooks, bool fed = false, std::vector<PlantedFault> faults = {}) {
  Lockstep lockstep(
      Model::synthetic({}),
      {lane_spec("truth", {{"numerics", "f64"}}),
       lane_spec("lane", fed ? Keys{{"numerics", "f32"}, {"inputs", "truth"}} : Keys{{"numerics", "f32"}})},
      3);
  Spans spans;
  lockstep.lanes()[1].attach(std::make_unique<Counter>(spans));
  lockstep.run({5, 9, 26}, hooks, std::move(faults));
  return spans;
}

}  // namespace

TEST_CASE("a lane that nobody looks at is a single span, whatever is looked at of others") {
  Look all(0, std::nullopt);
  CHECK(spans_of_second({}) == Spans{{Op::embed, Op::linear}});
  CHECK(spans_of_second({&all}) == Spans{{Op::embed, Op::linear}});
}

TEST_CASE("a lane stops where it is looked at, where a fault is planted, and where it is fed") {
  Look all(0, std::nullopt), softmax(1, Site{stages::attn_softmax, 2});
  CHECK(spans_of_second({&all, &softmax}) == Spans{{Op::embed, Op::softmax}, {Op::mix, Op::linear}});
  PlantedFault fault;
  fault.lane = 1;
  fault.spec.kind = FaultSpec::Kind::nan;
  fault.spec.stage = stages::attn_scores;
  fault.spec.layer = 1;
  CHECK(spans_of_second({&all}, false, {fault}) == Spans{{Op::embed, Op::scores}, {Op::softmax, Op::linear}});
  const std::size_t steps = build_program(Model::synthetic({})).size();
  CHECK(spans_of_second({&all}, true).size() == steps);
}

}  // namespace moe_diag::test
