// SPDX-License-Identifier: MIT
// What lanes had in their caches is put back as it was; a state fits behind one position only.
#include "core/explain/kept_caches.hpp"

#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

constexpr CacheInfo state_row{
    .name = "state", .row = {Dim{"x", [](const ModelConfig&, int) -> std::int64_t { return 3; }}}, .is_state = true};
constexpr Cache state(state_row);

// A lane of a model with a state in layer 0: the sum of the positions so far, three times.
class StateLane final : public Lane {
 public:
  Abilities abilities() const override { return {.rewinds = false}; }
  void begin(const Pass& pass) override {
    for (int r = 0; r < pass.rows(); ++r) values_[0] = values_[1] = values_[2] += pass.first + r;
    position_ = pass.first + pass.rows() - 1;
  }
  void run(std::span<const Step>) override {}
  Tensor read(Site, Rows) override { return {}; }
  void write(Site, Rows, const Tensor&) override {}
  Tensor read_cache(Cache, int, Stretch positions) override {
    if (positions.first != position_ || positions.count != 1) return {};
    return {values_, DType::f32, {1, 3}};
  }
  void write_cache(Cache, int, Stretch positions, const Tensor& values) override {
    position_ = positions.first;
    for (int i = 0; i < 3; ++i) values_[i] = values.as<float>()[i];
  }
  float value() const { return values_[2]; }

 private:
  float values_[3] = {};
  int position_ = -1;
};

}  // namespace

TEST_CASE("keys and values of a prompt are put back after another one, up to any of its positions") {
  Lockstep lockstep(Model::synthetic({}), {lane_spec("lane", {{"numerics", "f32"}})}, 8);
  const std::vector<std::int32_t> tokens = {5, 9, 26, 7, 1, 2}, others = {8, 31, 40, 41, 42, 43, 44, 45};
  const Recorder expected = lockstep.record_passes(tokens, {4, 6}, {true});
  KeptCaches kept(lockstep.lanes().program(0), lockstep.lanes());
  const ModelConfig& config = lockstep.model().config();
  CHECK(kept.bytes(6, {true}) == static_cast<std::uint64_t>(6 * 2 * config.layers * config.kv_width() * 4));
  kept.keep(0, 6, {true});
  lockstep.record_passes(others, {8}, {true});
  const std::span<const std::int32_t> rest = std::span(tokens).subspan(4);
  REQUIRE(kept.restore(0, 0, {rest, 4, 6, 0, Lockstep::id_of(tokens)}));
  CHECK_FALSE(kept.restore(1, 0, {rest, 4, 6, 0, Lockstep::id_of(tokens)}));
  CHECK_FALSE(kept.restore(0, 0, {rest, 7, 9, 0, Lockstep::id_of(tokens)}));
  const Recorder late = lockstep.record_passes(tokens, {6}, {true}, 4);
  for (const auto& [key, seen] : late.all()) {
    const std::vector<std::byte>& all = expected.all().at(key).bytes;
    CHECK(std::equal(seen.bytes.begin(), seen.bytes.end(), all.end() - static_cast<std::ptrdiff_t>(seen.bytes.size())));
  }
}

TEST_CASE("a state is put back behind the position where it was kept, and nowhere else") {
  Lockstep lockstep(Model::synthetic({}), {lane_spec("lane", {{"numerics", "f32"}})}, 8);
  RunningLane& lane = lockstep.lanes()[0];
  auto own = std::make_unique<StateLane>();
  const StateLane& inside = *own;
  lane.attach(std::move(own));
  Step step;
  step.layer = 0;
  step.caches.push_back({state, -1, 0});
  KeptCaches kept({step}, lockstep.lanes());
  CHECK(kept.bytes(6, {true}) == 3 * sizeof(float));

  const std::vector<std::int32_t> tokens = {5, 9, 26, 7, 1, 2};
  const auto pass = [&](int first, int count, std::int64_t sequence) {
    return Pass{std::span(tokens).subspan(static_cast<std::size_t>(first), static_cast<std::size_t>(count)), first, 6,
                0, sequence};
  };
  lane.begin(pass(0, 4, 1));
  CHECK(lane.has_cached(1, 4));
  CHECK_FALSE(lane.has_cached(1, 3));  // it cannot go back
  CHECK_FALSE(lane.has_cached(2, 4));
  kept.keep(0, 4, {true});
  lane.begin(pass(0, 6, 2));
  CHECK(inside.value() == 6 + 15);
  CHECK_FALSE(kept.restore(0, 0, pass(3, 1, 1)));
  REQUIRE(kept.restore(0, 0, pass(4, 2, 1)));
  CHECK(inside.value() == 6);
}

}  // namespace moe_diag::test
