// SPDX-License-Identifier: MIT
// Lanes whose values another engine recorded, and what a lane computes as that engine does.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "core/contract/dump_map.hpp"
#include "core/contract/section.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

bool read_yes(const Value& value) { return value.choice("answer", {"true", "false"}).value_or("") == "true"; }

std::string beside(const Contract& contract, const std::string& path) {
  const std::filesystem::path named(path);
  return named.is_relative() ? (std::filesystem::path(contract.folder) / named).string() : path;
}

std::vector<Stage> read_required(const Value& value, Stages known) {
  std::vector<Stage> stages;
  for (const Value& word : value.one_or_more())
    if (const auto pick = read_stage_word(word, known))
      stages.insert(stages.end(), pick->stages.begin(), pick->stages.end());
  return stages;
}

}  // namespace

std::optional<ReplaySpec> read_replay(Map& map, const Contract& contract) {
  const auto value = map.find("replay");
  if (!value) return std::nullopt;
  ReplaySpec replay;
  replay.where = value->node().where;
  if (const auto path = value->text()) replay.path = beside(contract, *path);
  if (const auto map_value = map.find("map")) {
    replay.map = map_value->text().value_or("");
    if (is_map_file(replay.map)) replay.map = beside(contract, replay.map);
  }
  if (const auto lane = map.find("lane")) replay.lane = lane->text().value_or("");
  if (const auto cut_ok = map.find("cut_ok")) replay.cut_ok = read_yes(*cut_ok);
  if (const auto take = map.find("take"))
    replay.take_first = take->choice("row of a position computed twice", {"first", "last"}).value_or("") == "first";
  if (const auto shared = map.find("fused_shared_expert")) replay.fused_shared_expert = read_yes(*shared);
  if (const auto zeros = map.find("zeros_ok")) replay.zeros_ok = read_yes(*zeros);
  if (const auto required = map.find("require")) replay.require = read_required(*required, contract.stages);
  return replay;
}

void check_replays(const std::vector<Entry>& entries, Contract& contract) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    LaneSpec& lane = contract.lanes[i];
    if (lane.as.empty()) continue;
    const LaneSpec* engine = find_lane(contract, lane.as);
    if (!engine) continue;
    if (engine == &lane || !engine->as.empty()) {
      entries[i].value.refuse(
          fmt::format("as: '{}' says itself how it computes: name a lane that does", shown(lane.as)));
      continue;
    }
    if (!lane.engine.empty()) {
      entries[i].value.refuse(
          fmt::format("as: '{}' says how products read and stages are stored: remove the lane's own "
                      "words, or 'as'",
                      shown(lane.as)));
      continue;
    }
    lane.engine = engine_of(*engine);
  }
}

// Its named numerics, as rows of the tables, under the words that it adds.
EngineNumerics engine_of(const LaneSpec& lane) {
  EngineNumerics engine = lane.engine;
  const Options::Entry* numerics = lane.options.entry("numerics");
  const NamedNumerics* named = find_named_numerics(numerics ? numerics->value : "");
  if (!named) return engine;
  if (engine.reads.empty() && named->reads != "exact") engine.reads = named->reads;
  if (engine.weights.empty() && named->weights != "as_stored") engine.weights = named->weights;
  if (engine.accumulator.empty()) engine.accumulator = named->accumulator;
  return engine;
}

}  // namespace moe_diag
