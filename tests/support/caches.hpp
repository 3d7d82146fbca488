// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "core/model/synthetic.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {

// Stages of lanes whose bytes behind position `from` are others when that pass alone is run: the fed lane has another
// sequence in its cache, the others have this one's. `knows`: the oracle's cache is known to be of this sequence.
inline int changed_by_late_start(const std::string& backend, const std::string& numerics, bool knows) {
  constexpr int from = 9;
  std::vector<LaneSpec> lanes = {
      lane_spec("truth", {{"numerics", "f64"}}), lane_spec("step", {{"numerics", numerics}, {"inputs", "truth"}}),
      lane_spec("free", {{"numerics", numerics}}), lane_spec("routed", {{"numerics", numerics}, {"routing", "truth"}})};
  for (std::size_t i = 1; i < lanes.size(); ++i) lanes[i].backend = backend;
  std::vector<std::int32_t> tokens, others;
  for (int i = 0; i < 12; ++i) {
    tokens.push_back((i * 37 + 11) % 512);
    others.push_back((i * 41 + 5) % 512);
  }
  Lockstep lockstep(Model::synthetic({}), lanes, static_cast<int>(tokens.size()));
  const std::vector<bool> all(lanes.size(), true), without_fed = {true, false, true, true};
  lockstep.record_passes(others, {12}, all);
  const Recorder expected = lockstep.record_passes(tokens, {4, from, 12}, all);
  lockstep.record_passes(others, {12}, {true, true, false, false});
  lockstep.record_passes(tokens, {4, from}, without_fed);
  if (!knows) lockstep.lanes()[0].forget_caches();
  const Recorder late = lockstep.record_passes(tokens, {12}, all, from);
  REQUIRE(late.all().size() == expected.all().size());
  int changed = 0;
  for (const auto& [key, seen] : late.all()) {
    const auto& before = expected.all().at(key);
    REQUIRE(seen.shape[0] == before.shape[0] - from);
    const std::size_t bytes = seen.bytes.size();
    changed += std::memcmp(seen.bytes.data(), before.bytes.data() + (before.bytes.size() - bytes), bytes) != 0;
  }
  return changed;
}

// A cache is read as it was computed, and written in another type.
inline void check_cache(const std::string& backend, const std::string& numerics) {
  LaneSpec free_spec = lane_spec("free", {{"numerics", numerics}});
  free_spec.backend = backend;
  Lockstep lockstep(Model::synthetic({}), {lane_spec("truth", {{"numerics", "f64"}}), free_spec}, 6);
  Recorder seen = lockstep.record({5, 9, 26, 7, 1, 2}, 4);
  const ModelConfig& config = lockstep.model().config();
  for (int lane : {0, 1}) {
    RunningLane& running = lockstep.lanes()[static_cast<std::size_t>(lane)];
    const Tensor keys = running.read_cache(caches::keys, 2, {1, 5}, config);
    const Tensor all_keys = seen.at(lane, {stages::k_post_rope, 2}).tensor();
    for (std::int64_t i = 0; i < keys.shape.count(); ++i)
      REQUIRE(keys.value(i) == all_keys.value(i + config.kv_width()));
    const Tensor values = running.read_cache(caches::values, 2, {1, 5}, config);
    const Tensor qkv = seen.at(lane, {stages::qkv_matmul, 2}).tensor();
    const std::int64_t width = config.kv_width(), row = qkv.shape.row();
    for (std::int64_t i = 0; i < values.shape.count(); ++i)
      REQUIRE(values.value(i) == qkv.value((i / width + 1) * row + (row - width) + i % width));
  }
  const Tensor truth = lockstep.lanes()[0].read_cache(caches::values, 3, {0, 2}, config);
  RunningLane& free = lockstep.lanes()[1];
  free.write_cache(caches::values, 3, {0, 2}, truth);
  const Tensor written = free.read_cache(caches::values, 3, {0, 2}, config);
  REQUIRE(written.dtype == DType::f32);
  for (std::int64_t i = 0; i < written.shape.count(); ++i)
    REQUIRE(written.as<float>()[i] == static_cast<float>(truth.as<double>()[i]));
  CHECK_THROWS_WITH(
      free.read_cache(caches::keys, 2, {4, 3}, config),
      Catch::Matchers::Contains("3 positions from 4 on of the cache of layer 2 asked for, it has 6 positions"));
  CHECK_THROWS_WITH(free.read_cache(caches::keys, 4, {0, 1}, config), Catch::Matchers::Contains("of 4 layers"));
  CHECK_THROWS_WITH(free.write_cache(caches::keys, 2, {0, 1}, truth),
                    Catch::Matchers::Contains("256 values written to the cache, expected 128"));
}

}  // namespace moe_diag::test
