// SPDX-License-Identifier: MIT
#include "tests/score/movement.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/compare/step_units.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::score {
namespace {

constexpr int truth_lane = 0, free_lane = 2;

// Keeps one site of one lane.
class OneSite final : public Hook {
 public:
  OneSite(int lane, Site site) : lane_(lane), site_(site) {}

  bool wants(int, int lane, Site site) const override { return lane == lane_ && site == site_; }
  void show(Sighting& sighting) override {
    const Tensor t = sighting.tensor(lane_);
    const auto* data = t.as<std::byte>();
    seen = {t.shape, t.dtype, {data, data + t.bytes()}};
  }

  test::Seen seen;

 private:
  const int lane_;
  const Site site_;
};

// "f32, stored: hf" as keys of a lane.
test::Keys keys_of(std::string text) {
  test::Keys keys;
  text = "numerics: " + text;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t colon = text.find(": ", at), end = std::min(text.find(", ", colon), text.size());
    keys.emplace_back(text.substr(at, colon - at), text.substr(colon + 2, end - colon - 2));
    at = end + 2;
  }
  return keys;
}

test::Keys fed(test::Keys keys) {
  keys.emplace_back("inputs", "truth");
  return keys;
}

}  // namespace

Movement::Movement(const SyntheticSpec& spec, const std::string& numerics, std::vector<std::int32_t> tokens)
    : tokens_(std::move(tokens)),
      run_(Model::synthetic(spec),
           {test::lane_spec("truth", {{"numerics", "f64"}}), test::lane_spec("step", fed(keys_of(numerics))),
            test::lane_spec("free", keys_of(numerics))},
           static_cast<int>(tokens_.size())),
      clean_(run_.record(tokens_)),
      program_(build_program(run_.model())) {}

double Movement::of(const FaultSpec& fault) {
  const Site site{fault.stage, fault.layer};
  const int lane = run_.lanes().index_of(fault.lane);
  OneSite faulty(lane, site);
  run_.run(tokens_, {&faulty}, {{lane, fault}});
  const test::Seen& clean = clean_.at(lane, site);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (payload_of(site.stage) == Payload::indices) return faulty.seen == clean ? 0 : infinity;
  const double moved = most(site, faulty.seen, lane, clean, lane);
  if (lane != free_lane) return moved;
  return moved / std::max(1.0, most(site, clean, lane, clean_.at(truth_lane, site), truth_lane));
}

// The largest difference between two lanes' values, in expected errors of the step. Neither is routed by a fault.
double Movement::most(Site site, const test::Seen& values, int lane, const test::Seen& beside, int beside_lane) {
  StepCase c;
  c.step = find_step(program_, site);
  c.stage = site.stage;
  c.a = values.tensor();
  c.b = beside.tensor();
  if (is_per_expert(site.stage)) {
    c.routing_a = clean_.at(lane, site.sibling(Role::choice)).tensor();
    c.routing_b = clean_.at(beside_lane, site.sibling(Role::choice)).tensor();
  }
  c.numerics = LaneNumerics(run_.lanes()[static_cast<std::size_t>(lane)].description);
  if (c.a.shape.row() == 1) c.in[0] = clean_.at(truth_lane, {c.step->in[0], site.layer}).tensor();
  double most = 0;
  for (const StepUnit& unit : units_of(c, run_.model().config())) most = std::max(most, unit.error);
  return most;
}

}  // namespace moe_diag::score
