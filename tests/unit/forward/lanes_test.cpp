// SPDX-License-Identifier: MIT
// Lanes of one contract may compute the weights of different files.
#include "core/lane/lanes.hpp"

#include "core/forward/forward.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {

TEST_CASE("each lane computes the model that it was given, in one lockstep") {
  const std::vector<std::int32_t> tokens = {5, 9, 26, 7};
  const std::vector<LaneSpec> specs = {lane_spec("one", {{"numerics", "f32"}}), lane_spec("two", {{"numerics", "f32"}}),
                                       lane_spec("fed", {{"numerics", "f32"}, {"inputs", "one"}})};
  const Model one = Model::synthetic({.seed = 1}), two = Model::synthetic({.seed = 2});
  PluginHost host({MOE_DIAG_PLUGINS});
  Contract contract;
  contract.lanes = specs;
  Lanes lanes(contract, {&one, &two, &two}, host, Request{4, 4});
  lanes.open({true, true, true});
  Recorder seen(lanes.size());
  Bus bus;
  bus.add(seen);
  Forward forward(lanes, bus, {}, {true, true, true});
  forward.pass({tokens, 0, 4, 0, 1}, 0);

  Lockstep alone_one(Model::synthetic({.seed = 1}), {specs[0]}, 4);
  Lockstep alone_two(Model::synthetic({.seed = 2}), {specs[1]}, 4);
  Recorder first = alone_one.record(tokens), second = alone_two.record(tokens);
  for (const Stage stage : one.config().stages) {
    const Site site{stage, info(stage).scope == Scope::layer ? 2 : -1};
    INFO(name_of(stage));
    CHECK(seen.at(0, site) == first.at(0, site));
    CHECK(seen.at(1, site) == second.at(0, site));
  }
  // Fed by the first, with the weights of the second.
  const Site norm{stages::attn_norm, 1}, scores{stages::attn_scores, 1};
  CHECK_FALSE(seen.at(2, norm) == seen.at(0, norm));
  CHECK(seen.at(2, scores) == seen.at(0, scores));
}

}  // namespace moe_diag::test
