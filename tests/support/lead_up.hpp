// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/model/synthetic.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"

namespace moe_diag::test {

// Stages of lanes whose bytes behind position `from` are others when the fed lane does this in the passes before it,
// while the oracle computes and the free lanes rest.
inline int changed_by_lead_up(const std::string& backend, const std::string& numerics, LeadUp of_fed) {
  constexpr int total = 12, from = 9;
  const std::vector<int> ends = {4, from, total};
  std::vector<LaneSpec> lanes = {
      lane_spec("truth", {{"numerics", "f64"}}), lane_spec("step", {{"numerics", numerics}, {"inputs", "truth"}}),
      lane_spec("free", {{"numerics", numerics}}), lane_spec("routed", {{"numerics", numerics}, {"routing", "truth"}})};
  for (std::size_t i = 1; i < lanes.size(); ++i) lanes[i].backend = backend;
  Lockstep lockstep(Model::synthetic({}), lanes, total);
  std::vector<std::int32_t> tokens, others;
  for (int i = 0; i < total; ++i) {
    tokens.push_back((i * 37 + 11) % 512);
    others.push_back((i * 41 + 5) % 512);
  }
  const std::vector<LeadUp> whole(lanes.size(), LeadUp::all);
  Recorder expected = lockstep.record_from(0, tokens, ends, whole, lanes.size());
  // What the fed lane has in its cache is of another sequence; the others' caches are as they were left.
  lockstep.record_from(0, others, ends, whole, 2);
  const std::vector<LeadUp> lead_up = {LeadUp::all, of_fed, LeadUp::rests, LeadUp::rests};
  const Recorder late = lockstep.record_from(from, tokens, ends, lead_up, lanes.size());
  REQUIRE(late.all().size() == expected.all().size());
  int changed = 0;
  for (const auto& [key, seen] : late.all()) {
    const auto [lane, stage, layer] = key;
    const Seen& before = expected.at(lane, {static_cast<Stage>(stage), layer});
    REQUIRE(seen.shape[0] == total - from);
    REQUIRE(before.shape[0] == total);
    const std::size_t bytes = seen.bytes.size();
    changed += std::memcmp(seen.bytes.data(), before.bytes.data() + (before.bytes.size() - bytes), bytes) != 0;
  }
  return changed;
}

}  // namespace moe_diag::test
