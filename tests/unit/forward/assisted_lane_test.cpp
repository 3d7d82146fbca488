// SPDX-License-Identifier: MIT
// A lane that computes some steps only has the stages of one that computes all.
#include "core/lane/assisted_lane.hpp"

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

using Supports = std::function<std::size_t(std::span<const Step>)>;

// The lane of a backend that computes the steps of `supports` only, and does not store what nobody wants.
class Declining final : public Lane {
 public:
  Declining(std::unique_ptr<Lane> lane, Supports supports, bool shows_caches = true)
      : lane_(std::move(lane)), supports_(std::move(supports)), shows_caches_(shows_caches) {}

  Abilities abilities() const override { return {.shows_caches = shows_caches_}; }
  std::size_t supports(std::span<const Step> steps) const override { return supports_(steps); }
  void begin(const Pass& pass) override { lane_->begin(pass); }
  void run(std::span<const Step> steps) override {
    REQUIRE(supports_(steps) == steps.size());
    lane_->run(steps);
    for (const Step& step : steps)
      for (const Stage stage : step.out) stored_.erase(stage.index());
    for (const Step& step : steps)
      for (const Stage stage : step.out)
        if (step.want) stored_.insert(stage.index());
  }
  Tensor read(Site site, Rows rows) override {
    return stored_.count(site.stage.index()) ? lane_->read(site, rows) : Tensor{};
  }
  void write(Site site, Rows rows, const Tensor& values) override {
    stored_.insert(site.stage.index());
    lane_->write(site, rows, values);
  }
  Tensor read_cache(Cache cache, int layer, Stretch positions) override {
    return shows_caches_ ? lane_->read_cache(cache, layer, positions) : Tensor{};
  }
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override {
    lane_->write_cache(cache, layer, positions, values);
  }

 private:
  const std::unique_ptr<Lane> lane_;
  const Supports supports_;
  const bool shows_caches_;
  std::set<std::size_t> stored_;  // stages that can be read
};

const std::vector<std::int32_t> tokens = {5, 9, 26, 7, 1, 2, 8};

// A model's f64 lane, of which the backend computes what `supports` says.
class Assisted {
 public:
  explicit Assisted(const Supports& supports, const std::string& preset = "tiny", bool shows_caches = true)
      : lockstep(Model::synthetic({.preset = preset, .layers = 2}), {lane_spec("lane", {{"numerics", "f64"}})}, 7) {
    RunningLane& lane = lockstep.lanes()[0];
    lane.attach(
        std::make_unique<AssistedLane>(std::make_unique<Declining>(lane.replace(nullptr), supports, shows_caches),
                                       lockstep.model().config(), lockstep.lanes().program(0)));
  }
  Lockstep lockstep;
};

Recorder whole(const std::string& preset, int chunk) {
  Lockstep lockstep(Model::synthetic({.preset = preset, .layers = 2}), {lane_spec("lane", {{"numerics", "f64"}})}, 7);
  return lockstep.record(tokens, chunk);
}

// Over all rows: a value alone may be next to nothing.
double error_of(const Tensor& a, const Tensor& b) {
  Measure m;
  m.add(a, 0, b, 0, a.shape.count());
  return m.rel_l2();
}

// The largest error of any stage; infinite when a choice differs.
double worst(const Recorder& a, const Recorder& b) {
  REQUIRE(a.all().size() == b.all().size());
  double most = 0;
  for (const auto& [key, seen] : a.all()) {
    const Seen& other = b.all().at(key);
    REQUIRE(seen.shape == other.shape);
    if (payload_of(key.second.stage) == Payload::indices)
      most = std::max(most, seen.bytes == other.bytes ? 0.0 : std::numeric_limits<double>::infinity());
    else
      most = std::max(most, error_of(seen.tensor(), other.tensor()));
  }
  return most;
}

Supports all_but(Op op) {
  return [op](std::span<const Step> steps) {
    const auto declined = std::find_if(steps.begin(), steps.end(), [op](const Step& step) { return step.op == op; });
    return static_cast<std::size_t>(declined - steps.begin());
  };
}

std::size_t none(std::span<const Step>) { return 0; }

// Attention from the scores to the sum as one, and nothing else.
std::size_t attention_as_one(std::span<const Step> steps) {
  const bool whole =
      steps.size() >= 3 && steps[0].op == Op::scores && steps[1].op == Op::softmax && steps[2].op == Op::mix;
  return whole ? 3 : 0;
}

}  // namespace

TEST_CASE("the plain operator computes what a lane does not, in passes of any length") {
  const std::vector<Op> ops = {Op::embed,   Op::rms_norm, Op::linear,  Op::rope,        Op::scores,
                               Op::softmax, Op::mix,      Op::add,     Op::topk,        Op::expert_linear,
                               Op::swiglu,  Op::weigh,    Op::combine, Op::sigmoid_gate};
  for (const int chunk : {7, 3}) {
    const Recorder expected = whole("tiny-qwen2moe", chunk);
    for (const Op op : ops) {
      if (op == Op::rms_norm) continue;
      INFO(operator_of(op).name << ", chunks of " << chunk);
      CHECK(worst(Assisted(all_but(op), "tiny-qwen2moe").lockstep.record(tokens, chunk), expected) < 1e-12);
    }
    CHECK(worst(Assisted(all_but(Op::rms_norm)).lockstep.record(tokens, chunk), whole("tiny", chunk)) < 1e-12);
    CHECK(worst(Assisted(none).lockstep.record(tokens, chunk), whole("tiny", chunk)) < 1e-12);
  }
}

TEST_CASE("steps that a lane computes as one are one where nobody looks between them, else plain") {
  const Recorder expected = whole("tiny", 3);
  CHECK(worst(Assisted(attention_as_one).lockstep.record(tokens, 3), expected) < 1e-12);
  Recorder last(std::size_t{1}, false);  // the logits only
  Assisted assisted(attention_as_one);
  assisted.lockstep.run(tokens, {&last}, {}, 3);
  const Tensor logits = last.at(0, {stages::lm_head, -1}).tensor();
  Recorder same = whole("tiny", 3);
  CHECK(worst_row(logits, same.at(0, {stages::lm_head, -1}).tensor()) < 1e-12);
}

TEST_CASE("what a lane leaves to the plain operators has names; one that hides what they read is refused") {
  Assisted assisted(none);
  const Program& program = assisted.lockstep.lanes().program(0);
  class Only final : public Lane {
   public:
    explicit Only(Supports supports) : supports_(std::move(supports)) {}
    std::size_t supports(std::span<const Step> steps) const override { return supports_(steps); }
    void begin(const Pass&) override {}
    void run(std::span<const Step>) override {}
    Tensor read(Site, Rows) override { return {}; }
    void write(Site, Rows, const Tensor&) override {}
    Tensor read_cache(Cache, int, Stretch) override { return {}; }
    void write_cache(Cache, int, Stretch, const Tensor&) override {}

   private:
    const Supports supports_;
  };
  CHECK(left_to_plain_operators(Only([](std::span<const Step> s) { return s.size(); }), program).empty());
  CHECK_THROWS_WITH(left_to_plain_operators(Only([](std::span<const Step> s) { return s.size() + 5; }), program),
                    Catch::Matchers::Contains(" steps from embedding on") && Catch::Matchers::Contains("supports: "));
  CHECK_THROWS_WITH(left_to_plain_operators(Declining(nullptr, all_but(Op::mix), false), program),
                    "the backend does not compute attention, and does not show its cache of values, which the plain "
                    "operator reads");
  CHECK(left_to_plain_operators(Only(all_but(Op::swiglu)), program) == "swiglu");
  CHECK(left_to_plain_operators(Only(attention_as_one), program) ==
        "embed, rms_norm, linear, rope, add, softmax, topk, expert_linear, swiglu, weigh, combine");

  Assisted hidden(all_but(Op::scores), "tiny", false);
  CHECK_THROWS_WITH(
      hidden.lockstep.record(tokens, 7),
      Catch::Matchers::Contains("lane 'lane' (backend cpu): run: layer 0, attn_scores: the backend does not "
                                "compute attn_scores, and does not show its cache of keys, which the "
                                "plain operator reads"));
}

}  // namespace moe_diag::test
