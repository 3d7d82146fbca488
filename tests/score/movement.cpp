// SPDX-License-Identifier: MIT
#include "tests/score/movement.hpp"

#include <algorithm>
#include <limits>
#include <utility>

#include "core/compare/step_units.hpp"

namespace moe_diag::score {
namespace {

constexpr int step_lane = 1;

// Keeps one site of one lane.
class OneSite final : public Hook {
 public:
  explicit OneSite(Site site) : site_(site) {}

  bool wants(int, int lane, Site site) const override { return lane == step_lane && site == site_; }
  void show(Sighting& sighting) override {
    const Tensor t = sighting.tensor(step_lane);
    const auto* data = t.as<std::byte>();
    seen = {t.shape, t.dtype, {data, data + t.bytes()}};
  }

  test::Seen seen;

 private:
  Site site_;
};

}  // namespace

Movement::Movement(const SyntheticSpec& spec, const std::string& numerics, std::vector<std::int32_t> tokens)
    : numerics_(numerics),
      tokens_(std::move(tokens)),
      run_(Model::synthetic(spec),
           {test::lane_spec("truth", {{"numerics", "f64"}}),
            test::lane_spec("step", {{"numerics", numerics}, {"inputs", "truth"}})},
           static_cast<int>(tokens_.size())),
      clean_(run_.record(tokens_)),
      program_(build_program(run_.model())) {}

double Movement::of(const FaultSpec& fault) {
  const Site site{fault.stage, fault.layer};
  OneSite faulty(site);
  run_.run(tokens_, {&faulty}, {{step_lane, fault}});
  const test::Seen& clean = clean_.at(step_lane, site);
  constexpr double infinity = std::numeric_limits<double>::infinity();
  if (info(site.stage).payload == Payload::indices) return faulty.seen == clean ? 0 : infinity;

  StepCase c;
  c.step = find_step(program_, site);
  c.stage = site.stage;
  c.a = faulty.seen.tensor();
  c.b = clean.tensor();
  if (is_per_expert(site.stage))
    c.routing_a = c.routing_b = clean_.at(step_lane, {Stage::moe_router_indices, site.layer}).tensor();
  c.numerics = numerics_;
  double most = 0;
  for (const StepUnit& unit : units_of(c, run_.model().config())) most = std::max(most, unit.error);
  return most;
}

}  // namespace moe_diag::score
