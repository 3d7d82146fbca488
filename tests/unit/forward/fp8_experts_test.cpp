// SPDX-License-Identifier: MIT
// Experts in FP8 by blocks, judged by an f64 lane that rounds as they do: what is left is far below a mistake of 5 % in
// a part of one matrix, which an f64 lane that rounds nothing cannot tell from FP8 itself.
#include <algorithm>
#include <cmath>
#include <map>
#include <string>
#include <vector>

#include "core/lane/lanes.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

constexpr double bf16_rounding = 1.66e-3;  // rms, relative: docs/numerics.md
const std::vector<std::int32_t> tokens = {5, 9, 26, 7, 141, 358, 59, 3};
const int count = static_cast<int>(tokens.size());

Keys as_vllm(Keys keys) {
  for (const auto& [key, value] : Keys{{"reads", "fp8_128"}, {"weights", "fp8_block"}, {"stored", "vllm"}})
    keys.emplace_back(key, value);
  return keys;
}

// Lanes of one layer: the oracle, the engine fed by it, and f64 without the engine's roundings.
class Experts {
 public:
  explicit Experts(std::uint64_t seed)
      : lockstep_(Model::synthetic({.layers = 1, .quant = "bf16", .seed = seed}),
                  {lane_spec("truth", as_vllm({{"numerics", "f64"}})),
                   lane_spec("engine", as_vllm({{"numerics", "f32"}, {"inputs", "truth"}})),
                   lane_spec("plain", {{"numerics", "f64"}, {"inputs", "truth"}})},
                  count),
        seen_(lockstep_.record(tokens)) {}

  enum Lane { truth, engine, plain };
  Tensor at(int lane, Site site) { return seen_.at(lane, site).tensor(); }
  const std::map<std::pair<int, Site>, Seen>& all() const { return seen_.all(); }
  int used() const { return lockstep_.model().config().used; }

  // moe_ffn_out of a lane that goes from the oracle's ffn_norm and routing through all experts by itself. `factor`: of
  // a quarter of one expert's down, by its rows.
  host::Values ffn_out(Lane index, int expert = -1, double factor = 1) {
    RunningLane& lane = lockstep_.lanes()[static_cast<std::size_t>(index)];
    lane.begin({tokens, 0, count, 0, Lockstep::id_of(tokens)});
    for (const Stage stage : {stages::ffn_norm, stages::moe_router_indices, stages::moe_router_weights})
      lane.write({stage, 0}, {0, count}, at(truth, {stage, 0}));
    for (const Step& step : lockstep_.lanes().program(static_cast<std::size_t>(index))) {
      if (step.layer != 0 || step.out[0].index() < stages::moe_expert_gate.index() ||
          step.out[0].index() > stages::moe_ffn_out.index())
        continue;
      lane.run({&step, 1});
      if (step.out[0] == stages::moe_expert_out && expert >= 0) bend(lane, expert, factor);
    }
    return host::values_of(lane.read({stages::moe_ffn_out, 0}, {0, count}));
  }

 private:
  void bend(RunningLane& lane, int expert, double factor) {
    const Site site{stages::moe_expert_out, 0};
    const Tensor out = lane.read(site, {0, count}), ids = at(truth, {stages::moe_router_indices, 0});
    host::Values values = host::values_of(out);
    const auto width = static_cast<std::size_t>(out.shape.dims[2]);
    for (std::int64_t slot = 0; slot < ids.shape.count(); ++slot)
      for (std::size_t i = 0; ids.as<std::int32_t>()[slot] == expert && i < width / 4; ++i)
        values[static_cast<std::size_t>(slot) * width + i] *= factor;
    lane.write(site, {0, count}, {values.data(), DType::f64, out.shape});
  }

  Lockstep lockstep_;
  Recorder seen_;
};

// The largest relative L2 error of the rows that chose the expert; -1: of all.
double worst_of(Experts& experts, const host::Values& a, const host::Values& b, int expert = -1) {
  const Tensor ids = experts.at(Experts::truth, {stages::moe_router_indices, 0});
  const std::size_t width = a.size() / static_cast<std::size_t>(count);
  double worst = 0;
  for (std::size_t row = 0; row < static_cast<std::size_t>(count); ++row) {
    const std::int32_t* chosen = ids.as<std::int32_t>() + row * static_cast<std::size_t>(experts.used());
    if (expert >= 0 && std::count(chosen, chosen + experts.used(), expert) == 0) continue;
    double off = 0, all = 0;
    for (std::size_t i = row * width; i < (row + 1) * width; ++i) {
      off += (a[i] - b[i]) * (a[i] - b[i]);
      all += b[i] * b[i];
    }
    worst = std::max(worst, std::sqrt(off / all));
  }
  return worst;
}

}  // namespace

TEST_CASE("an engine with experts in FP8 by blocks is within three roundings of bf16 where f64 rounds alike") {
  for (const std::uint64_t seed : {1, 7}) {
    Experts experts(seed);
    int sites = 0;
    for (const auto& [key, seen] : experts.all()) {
      if (key.first != Experts::engine || payload_of(key.second.stage) == Payload::indices) continue;
      INFO(name_of(key.second.stage));
      CHECK(worst_row(seen.tensor(), experts.at(Experts::truth, key.second)) < 3 * bf16_rounding);
      ++sites;
    }
    CHECK(sites > 20);
  }
}

TEST_CASE("5 % in a quarter of one down stand out beside FP8 by blocks where f64 rounds alike, and nowhere else") {
  for (const std::uint64_t seed : {1, 7}) {
    Experts experts(seed);
    const host::Values truth = experts.ffn_out(Experts::truth), plain = experts.ffn_out(Experts::plain);
    const host::Values sound = experts.ffn_out(Experts::engine);
    const int expert = experts.at(Experts::truth, {stages::moe_router_indices, 0}).as<std::int32_t>()[0];
    const host::Values wrong = experts.ffn_out(Experts::engine, expert, 1.05);
    const double own = worst_of(experts, sound, truth, expert), bent = worst_of(experts, wrong, truth, expert);
    const double own_plain = worst_of(experts, sound, plain, expert),
                 bent_plain = worst_of(experts, wrong, plain, expert);
    INFO("seed " << seed << ": beside f64 that rounds alike " << own << " and " << bent << ", beside plain f64 "
                 << own_plain << " and " << bent_plain);
    CHECK(worst_of(experts, sound, truth) < 3 * bf16_rounding);
    CHECK(bent > 10 * own);
    CHECK(bent > 3 * bf16_rounding);
    CHECK(bent_plain < 1.5 * own_plain);
  }
}

}  // namespace moe_diag::test
