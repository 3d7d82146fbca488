// SPDX-License-Identifier: MIT
// What stands in for a lane has what the lane had, bit for bit.
#include "core/lane/kept_stages.hpp"

#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

// Keeps all that the first lane has.
class Keeper final : public Hook {
 public:
  explicit Keeper(std::size_t bytes) : kept(bytes) {}
  bool wants(int, int lane, Site) const override { return lane == 0; }
  void show(Sighting& sighting) override {
    fits = kept.keep(sighting.site, sighting.position(0), sighting.tensor(0)) && fits;
  }
  KeptStages kept;
  bool fits = true;
};

const std::vector<std::int32_t> tokens = {5, 9, 26, 7, 1, 2, 8, 31, 40, 41, 42, 43};

// The lane itself, and what stands in for it.
class Replay {
 public:
  explicit Replay(int chunk, int head_first = 0)
      : lockstep(Model::synthetic({}), {lane_spec("truth", {{"numerics", "f64"}})}, 12), keeper(16 << 20) {
    lockstep.run(tokens, {&keeper}, {}, chunk, head_first);
    itself = lockstep.lanes()[0].replace(nullptr);
    lockstep.lanes()[0].attach(
        std::make_unique<ReplayedLane>(keeper.kept, *itself, lockstep.model().config(), program));
  }
  Lockstep lockstep;
  const Program program = build_program(lockstep.model());
  Keeper keeper;
  std::unique_ptr<Lane> itself;
};

}  // namespace

TEST_CASE("a replayed lane has the bytes of the lane, of whole passes and of passes that are cut") {
  for (const int chunk : {12, 5, 1}) {
    Lockstep lockstep(Model::synthetic({}), {lane_spec("truth", {{"numerics", "f64"}})}, 12);
    Replay replay(chunk);
    CHECK(replay.keeper.fits);
    CHECK(replay.lockstep.record(tokens, chunk).all() == lockstep.record(tokens, chunk).all());
    const std::vector<int> cut = {std::min(chunk, 4)};
    CHECK(replay.lockstep.record_passes(tokens, cut, {true}).all() ==
          lockstep.record_passes(tokens, cut, {true}).all());
  }
}

TEST_CASE("rows of the head that the run left out are computed from what it kept") {
  Lockstep lockstep(Model::synthetic({}), {lane_spec("truth", {{"numerics", "f64"}})}, 12);
  Replay replay(12, 11);
  for (const int end : {4, 8, 12}) {
    const Recorder expected = lockstep.record_passes(tokens, {end}, {true});
    CHECK(replay.lockstep.record_passes(tokens, {end}, {true}).all() == expected.all());
  }
}

TEST_CASE("keys and values of all passes are there, of no other positions") {
  Lockstep lockstep(Model::synthetic({}), {lane_spec("truth", {{"numerics", "f64"}})}, 12);
  lockstep.record(tokens, 5);
  Replay replay(5);
  const ModelConfig& config = lockstep.model().config();
  for (const Cache cache : {caches::keys, caches::values})
    for (const Stretch positions : {Stretch{0, 12}, Stretch{3, 4}, Stretch{11, 1}}) {
      const Tensor expected = lockstep.lanes()[0].read_cache(cache, 2, positions, config);
      const Tensor kept = replay.lockstep.lanes()[0].read_cache(cache, 2, positions, config);
      REQUIRE(kept);
      REQUIRE(kept.shape == expected.shape);
      CHECK(std::memcmp(kept.data, expected.data, kept.bytes()) == 0);
    }
  CHECK_FALSE(replay.lockstep.lanes()[0].read_cache(caches::keys, 2, {11, 2}, config));
  CHECK_FALSE(replay.lockstep.lanes()[0].read_cache(caches::keys, 9, {0, 2}, config));
}

TEST_CASE("what does not fit is not kept, and what was kept is not replaced") {
  Lockstep lockstep(Model::synthetic({}), {lane_spec("truth", {{"numerics", "f64"}})}, 12);
  Keeper keeper(1 << 20);
  lockstep.run(tokens, {&keeper});
  CHECK_FALSE(keeper.fits);
  CHECK(keeper.kept.at({stages::embedding, -1}, {0, 12}));
  CHECK_FALSE(keeper.kept.at({stages::embedding, -1}, {1, 12}));
  CHECK_FALSE(keeper.kept.at({stages::lm_head, -1}, {11, 1}));
  CHECK_THROWS_AS(KeptStages(std::size_t{1} << 62), std::bad_alloc);

  Replay replay(12);
  RunningLane& lane = replay.lockstep.lanes()[0];
  const Tensor row = replay.keeper.kept.at({stages::embedding, -1}, {0, 1});
  CHECK_THROWS_WITH(lane.write({stages::embedding, -1}, {0, 1}, row),
                    Catch::Matchers::Contains("what was computed once cannot be replaced"));
  CHECK_THROWS_WITH(lane.write_cache(caches::keys, 0, {0, 1}, row),
                    Catch::Matchers::Contains("what was computed once cannot be replaced"));
}

}  // namespace moe_diag::test
