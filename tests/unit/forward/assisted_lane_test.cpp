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
#include "tests/support/declining.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

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
