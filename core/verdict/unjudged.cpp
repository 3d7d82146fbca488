// SPDX-License-Identifier: MIT
#include "core/verdict/unjudged.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <vector>

#include "core/ops/predicted.hpp"
#include "core/verdict/controls.hpp"

namespace moe_diag {
namespace {

bool has_floor(const WatchedFalsifier& watched, const Program& program, const Lanes& lanes) {
  if (watched.spec->metric != Metric::noise_ratio || watched.floor >= 0) return true;
  const std::string& numerics = lanes[static_cast<std::size_t>(watched.lane)].description.numerics;
  return expected_error(LaneNumerics(numerics), program.front(), lanes.config(), 1).has_value();
}

}  // namespace

std::string obstacle_to_judging(const WatchedFalsifier& watched, const Program& program, const Lanes& lanes) {
  for (int i : {watched.lane, watched.against, watched.floor})
    if (i >= 0 && !lanes[static_cast<std::size_t>(i)].runs()) {
      const RunningLane& lane = lanes[static_cast<std::size_t>(i)];
      return fmt::format("lane '{}' is absent: {}", lane.name, lane.absent);
    }
  if (has_floor(watched, program, lanes)) return "";
  return fmt::format("no error is known to be expected of the numerics '{}': name a lane as the floor",
                     lanes[static_cast<std::size_t>(watched.lane)].description.numerics);
}

std::string not_computed_text(const Judgement& j) {
  if (j.not_computed == 0) return "";
  return fmt::format(
      "{} recorded arrays of calls were not judged, the first {}: what their steps read is not recorded, nor can it be "
      "computed (tokens, keys and values of earlier positions, or stages before them)",
      j.not_computed, text_of(j.first_not_computed));
}

std::string undecided_text(const Judgement& j) {
  if (j.undecided == 0) return "";
  return fmt::format(
      "{} of {} samples were not judged: rounding may have chosen other experts in their rows, and the choice is not "
      "recorded; record {}",
      j.undecided, j.samples + j.undecided, name_of(j.spec->stages.stages.front().sibling(Role::choice)));
}

std::string several_steps_text(std::int64_t sites) {
  return fmt::format(
      "{} recorded arrays follow over several steps, whose rounding is not predicted: they are judged where a lane is "
      "the floor",
      sites);
}

std::string left_out_text(const Judgement& j, const Contract& contract) {
  if (j.not_judged.samples == 0) return "";
  const Sample& first = j.not_judged.first;
  const std::string& name = contract.lanes[static_cast<std::size_t>(j.not_judged.lane)].name;
  return fmt::format(
      "{} of {} samples were not judged: {} '{}', which they are compared with, is not finite there, first at prompt "
      "{}, position {}, {}{}",
      j.not_judged.samples, j.samples + j.not_judged.samples, name == contract.oracle ? "the oracle" : "lane", name,
      contract.prompts[static_cast<std::size_t>(first.prompt)].id, first.position, text_of(first.site),
      first.expert < 0 ? "" : fmt::format(", expert {}", first.expert));
}

std::string never_run_text(const WatchedFalsifier& watched, const ModelConfig& config,
                           const std::set<std::pair<int, int>>& ran) {
  constexpr std::size_t most_named = 4;
  std::map<int, std::vector<int>> layers_of;  // by expert
  for (int expert : watched.experts)
    for (int layer = 0; layer < config.layers; ++layer) {
      const auto is_watched = [&](Stage stage) {
        return info(stage).scope == Scope::layer && watched.sites.contains({stage, layer});
      };
      if (std::any_of(config.stages.begin(), config.stages.end(), is_watched) && ran.count({layer, expert}) == 0)
        layers_of[expert].push_back(layer);
    }
  std::string text;
  std::size_t named = 0;
  for (const auto& [expert, layers] : layers_of) {
    if (named++ == most_named) return fmt::format("{}, nor through {} more", text, layers_of.size() - most_named);
    text +=
        fmt::format("{} expert {} at layer{} {}", named == 1 ? "no row of the prompts went through" : ", nor through",
                    expert, layers.size() > 1 ? "s" : "", fmt::join(layers, ", "));
  }
  return text;
}

}  // namespace moe_diag
