// SPDX-License-Identifier: MIT
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "core/model/synthetic.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"

namespace moe_diag::test {

// After a pass in which the oracle computes, a fed lane fills its cache and a free one rests, the three give the bytes
// that they give without.
inline void check_lead_up(const std::string& backend, const std::string& numerics) {
  INFO(backend << ", " << numerics);
  constexpr int total = 12, from = 9;
  std::vector<LaneSpec> lanes = {lane_spec("truth", {{"numerics", "f64"}}),
                                 lane_spec("step", {{"numerics", numerics}, {"inputs", "truth"}}),
                                 lane_spec("free", {{"numerics", numerics}})};
  for (std::size_t i = 1; i < lanes.size(); ++i) lanes[i].backend = backend;
  Lockstep lockstep(Model::synthetic({}), lanes, total);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < total; ++i) tokens.push_back((i * 37 + 11) % 512);
  Recorder whole = lockstep.record(tokens);
  const Recorder late = lockstep.record_from(from, tokens, {LeadUp::all, LeadUp::caches, LeadUp::rests});
  REQUIRE(late.all().size() == whole.all().size());
  for (const auto& [key, seen] : late.all()) {
    const auto [lane, stage, layer] = key;
    INFO("lane " << lane << ", layer " << layer << ", " << name_of(static_cast<Stage>(stage)));
    const Seen& all = whole.at(lane, {static_cast<Stage>(stage), layer});
    REQUIRE(seen.shape[0] == total - from);
    REQUIRE(all.shape[0] == total);
    const std::size_t bytes = seen.bytes.size();
    CHECK(std::memcmp(seen.bytes.data(), all.bytes.data() + (all.bytes.size() - bytes), bytes) == 0);
  }
}

}  // namespace moe_diag::test
