// SPDX-License-Identifier: MIT
// The keys of falsifiers that speak of passes a lane computes alone.
#include <fmt/format.h>

#include <filesystem>

#include "core/contract/metric.hpp"
#include "core/contract/section.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr int most_repeats = 10'000;

// A mistake and nothing when it is none of the forms.
std::optional<Twin> read_twin(const Value& value, FalsifierSpec& spec, const Contract& contract) {
  const std::vector<std::string> words = {"untraced", "rerun", "threads", "chunks"};
  if (value.node().kind == YamlNode::Kind::map) {
    const std::size_t before = value.mistakes().count();
    Map map(value);
    const auto file = map.require("digest");
    const auto name = file ? file->text() : std::nullopt;
    map.finish();
    if (!name || value.mistakes().count() != before) return std::nullopt;
    const std::filesystem::path path(*name);
    spec.digest = path.is_relative() ? (std::filesystem::path(contract.folder) / path).string() : *name;
    return Twin::digest;
  }
  if (value.node().text == "digest") {
    value.refuse("digest is of a file: write {digest: FILE}");
    return std::nullopt;
  }
  const auto word = value.choice("pass to compare with", words);
  for (const Twin to : {Twin::untraced, Twin::rerun, Twin::threads, Twin::chunks})
    if (word == name_of(to)) return to;
  return std::nullopt;
}

bool is_repeated(Metric metric) { return !has_stage(metric) && metric != Metric::device_memory_fraction; }

// A lane that takes over another's values cannot compute without it.
void check_alone(const Value& where, const FalsifierSpec& spec, Metric metric, const Contract& contract) {
  if (contract.step && is_alone(metric))
    where.refuse(fmt::format("{} is of whole passes, and the contract computes one step", info(metric).name));
  const LaneSpec* lane = find_lane(contract, spec.lane);
  if (!lane || !is_alone(metric) || (metric == Metric::identical && spec.to == Twin::digest)) return;
  if (lane->inputs.empty() && lane->routing.empty()) return;
  where.refuse(fmt::format(
      "{} is of passes that the lane computes alone, and lane '{}' takes its {} from lane '{}': judge a free lane{}",
      info(metric).name, shown(spec.lane), lane->inputs.empty() ? "routing" : "inputs",
      shown(lane->inputs.empty() ? lane->routing : lane->inputs),
      metric == Metric::identical ? ", or use to: {digest: FILE}" : ""));
}

}  // namespace

bool read_alone(Map& map, FalsifierSpec& spec, std::optional<Metric> metric, const Contract& contract) {
  const bool has_twin = metric == Metric::identical;
  const auto to = has_twin ? map.require("to") : map.find("to");
  std::optional<Twin> twin;
  if (to && has_twin) twin = read_twin(*to, spec, contract);
  if (to && metric && !has_twin) to->refuse("is for the metric identical: remove it");
  if (twin) spec.to = *twin;
  if (const auto repeat = map.find("repeat")) {
    spec.repeat = static_cast<int>(repeat->whole(1, most_repeats).value_or(1));
    if (metric && !is_repeated(*metric))
      repeat->refuse("is for the metrics seconds, tokens_per_second and capture_overhead: remove it");
  }
  if (has_twin && !twin) return false;
  if (const auto lane = map.find("lane"); lane && metric) check_alone(*lane, spec, *metric, contract);
  return true;
}

void refuse_stage_keys(Map& map, Metric metric) {
  for (const std::string_view key : {"stage", "layers", "positions", "experts", "per_stage", "per_type"})
    if (const auto value = map.find(key))
      value->refuse(fmt::format("{} is of whole passes: remove '{}'", info(metric).name, key));
  if (const auto controls = map.find("controls"))
    controls->refuse(fmt::format("no fault changes what {} measures: remove 'controls'", info(metric).name));
}

bool fits(const FalsifierSpec& spec, Metric metric, Stage stage) {
  const bool head_only = metric == Metric::identical && spec.to != Twin::digest;
  return fits(metric, stage) && (!head_only || is_of_head(stage));
}

std::string fitting_stages(const FalsifierSpec& spec, Metric metric, Stages stages) {
  return stages_listed(stages, [&](Stage stage) { return fits(spec, metric, stage); });
}

}  // namespace moe_diag
