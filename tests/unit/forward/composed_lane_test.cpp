// SPDX-License-Identifier: MIT
// A kernel over a base: together they have the stages of one lane that computes all, but those inside of the kernel.
#include "core/lane/composed_lane.hpp"

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "core/ops/operator.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/declining.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

const std::vector<std::int32_t> tokens = {5, 9, 26, 7, 1, 2, 8};

// Only steps of that operator.
Supports only(Op op) {
  return [op](std::span<const Step> steps) {
    const auto other = std::find_if(steps.begin(), steps.end(), [op](const Step& step) { return step.op != op; });
    return static_cast<std::size_t>(other - steps.begin());
  };
}

// All experts of a layer, from gate to the sum.
std::size_t experts_as_one(std::span<const Step> steps) {
  return steps.size() >= 6 && steps[0].op == Op::expert_linear && steps[5].op == Op::combine ? 6 : 0;
}

// An f64 lane as a kernel over another one.
class Composed {
 public:
  explicit Composed(const Supports& supports, const std::string& preset = "tiny")
      : lockstep(Model::synthetic({.preset = preset, .layers = 2}),
                 {lane_spec("kernel", {{"numerics", "f64"}}), lane_spec("base", {{"numerics", "f64"}})}, 7) {
    RunningLane &kernel = lockstep.lanes()[0], &base = lockstep.lanes()[1];
    auto own = std::make_unique<Declining>(kernel.replace(nullptr), supports);
    kernel.composition = std::make_shared<const Composition>(*own, lockstep.lanes().program(0));
    kernel.attach(std::make_unique<ComposedLane>(std::move(own), base.replace(nullptr), lockstep.model().config(),
                                                 kernel.composition));
  }
  const Composition& composition() { return *lockstep.lanes()[0].composition; }
  Recorder record(int chunk) {
    Recorder recorder(std::vector<bool>{true, false});
    lockstep.run(tokens, {&recorder}, {}, chunk);
    return recorder;
  }
  Lockstep lockstep;
};

Recorder whole(const std::string& preset, int chunk) {
  Lockstep lockstep(Model::synthetic({.preset = preset, .layers = 2}), {lane_spec("lane", {{"numerics", "f64"}})}, 7);
  return lockstep.record(tokens, chunk);
}

bool same_bytes(const Recorder& a, const Recorder& b) {
  bool same = a.all().size() == b.all().size();
  for (const auto& [key, seen] : a.all()) same = same && b.all().count(key) == 1 && seen == b.all().at(key);
  return same;
}

}  // namespace

TEST_CASE("a kernel of any operator over a base gives what one lane gives, in passes of any length") {
  for (const int chunk : {7, 3}) {
    const Recorder expected = whole("tiny-qwen2moe", chunk), normed = whole("tiny", chunk);
    for (const Op op : {Op::linear, Op::rope, Op::scores, Op::softmax, Op::mix, Op::add, Op::topk, Op::expert_linear,
                        Op::swiglu, Op::weigh, Op::combine, Op::sigmoid_gate}) {
      INFO(operator_of(op).name << ", chunks of " << chunk);
      Composed composed(only(op), "tiny-qwen2moe");
      CHECK(composed.composition().operators() == operator_of(op).name);
      CHECK(same_bytes(composed.record(chunk), expected));
      CHECK(same_bytes(Composed(all_but(op), "tiny-qwen2moe").record(chunk), expected));
    }
    CHECK(same_bytes(Composed(only(Op::rms_norm)).record(chunk), normed));
  }
}

TEST_CASE("of steps that a kernel computes at once only what the last one writes is seen, whoever looks") {
  for (const Supports& supports : {Supports(experts_as_one), Supports(attention_as_one)})
    for (const int chunk : {7, 3}) {
      const Recorder expected = whole("tiny", chunk);
      Composed composed(supports);
      const Recorder seen = composed.record(chunk);
      std::size_t inside = 0;
      for (const auto& [key, stage] : expected.all()) {
        const bool is_hidden = composed.composition().is_inside(key.second);
        INFO(name_of(key.second.stage) << " of layer " << key.second.layer);
        CHECK(seen.all().count(key) == (is_hidden ? 0 : 1));
        if (!is_hidden) CHECK(seen.all().at(key) == stage);
        inside += is_hidden;
      }
      CHECK(inside > 0);
      CHECK(seen.all().size() + inside == expected.all().size());

      Recorder last(std::vector<bool>{true, false}, false);  // the logits only
      composed.lockstep.run(tokens, {&last}, {}, chunk);
      CHECK(last.at(0, {stages::lm_head, -1}) == expected.all().at({0, {stages::lm_head, -1}}));
    }
}

TEST_CASE("steps with a place in a kernel are told together, all others alone") {
  Composed composed(experts_as_one);
  const Program& program = composed.lockstep.lanes().program(0);
  const Site out{stages::moe_ffn_out, 1}, gate{stages::moe_expert_gate, 1}, norm{stages::ffn_norm, 1};
  const auto names = [&](Site site) {
    std::string text;
    for (const Step& step : composed.composition().steps_with(site)) text.append(name_of(step.out[0])).append(" ");
    return text;
  };
  CHECK(names(out) ==
        "moe_expert_gate moe_expert_up moe_expert_swiglu moe_expert_out moe_expert_weighted moe_ffn_out ");
  CHECK(names(gate) == names(out));
  CHECK(names(norm) == "ffn_norm ");
  CHECK(composed.composition().is_inside(gate));
  CHECK_FALSE(composed.composition().is_inside(out));
  CHECK(composed.composition().is_kernels(out));
  CHECK_FALSE(composed.composition().is_kernels(norm));
  CHECK(composed.composition().operators() == "expert_linear, swiglu, weigh, combine");

  CHECK_FALSE(needs_base(Declining(nullptr, experts_as_one, true), program));
  CHECK(needs_base(Declining(nullptr, experts_as_one, false), program));
  CHECK_FALSE(needs_base(Declining(nullptr, all_but(Op::swiglu), false), program));
  CHECK_THROWS_WITH(Composition(Declining(nullptr, [](auto steps) { return steps.size() + 5; }), program),
                    Catch::Matchers::Contains(" steps from embedding on"));
}

}  // namespace moe_diag::test
