// SPDX-License-Identifier: MIT
// A pass may lack its tokens: what was written in place of the embedding is computed on.
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {

TEST_CASE("a pass without tokens computes from what is written, and no step that reads tokens") {
  const std::vector<std::int32_t> tokens = {5, 9, 26};
  Lockstep known(Model::synthetic({.layers = 2}), {lane_spec("lane", {{"numerics", "f32"}})}, 3);
  Recorder expected = known.record(tokens);

  Lockstep unknown(Model::synthetic({.layers = 2}), {lane_spec("lane", {{"numerics", "f32"}})}, 3);
  RunningLane& lane = unknown.lanes()[0];
  Pass pass;
  pass.total = pass.rows_without_tokens = 3;
  lane.begin(pass);
  const std::span<const Step> program = unknown.lanes().program(0);
  CHECK_THROWS_WITH(lane.run(program.first(1)), Catch::Matchers::Contains("the tokens of this pass are not known"));
  for (const float factor : {1.0f, 2.0f}) {
    const Seen embedding = expected.at(0, {stages::embedding, -1});
    std::vector<float> values(embedding.tensor().as<float>(), embedding.tensor().as<float>() + 3 * 256);
    for (float& v : values) v *= factor;
    lane.write({stages::embedding, -1}, {0, 3}, {values.data(), DType::f32, {3, 256}});
    lane.run(program.subspan(1));
    const Tensor logits = lane.read({stages::lm_head, -1}, {0, 3});
    const Seen seen{logits.shape, logits.dtype, {logits.as<std::byte>(), logits.as<std::byte>() + logits.bytes()}};
    CHECK((seen == expected.at(0, {stages::lm_head, -1})) == (factor == 1));
  }
}

}  // namespace moe_diag::test
