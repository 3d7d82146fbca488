// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <utility>

#include "core/contract/section.hpp"
#include "core/ops/variant.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

// Keys that are not the core's own go to the plugin, which knows them.
Options read_options(const Map& map, const std::string& owner) {
  Options options(owner, map.value().place());
  for (const Entry& entry : map.rest()) {
    const YamlNode& node = entry.value.node();
    if (node.kind != YamlNode::Kind::scalar) {
      entry.value.refuse(fmt::format("expected a single value, found {}", found(node)));
    } else if (node.text.find("${") != std::string::npos) {
      entry.value.refuse("variables are expanded in model.gguf only: write the value out, or use --set");
    } else {
      options.add(entry.name(), node.text, entry.value.place());
    }
  }
  return options;
}

// The plugin a lane or a sink names: an empty name after a mistake.
std::string read_plugin(Map& map, std::string_view key, std::string& place) {
  const auto value = map.require(key);
  if (value) place = value->place();
  return value ? value->name().value_or("") : "";
}

template <class Row>
std::vector<std::string> names_of(std::span<const Row> rows) {
  std::vector<std::string> names;
  for (const Row& row : rows) names.emplace_back(row.name);
  return names;
}

// A preset, or types by stage, of which the last word counts: {all: bf16, moe_router_probs: f32}.
void read_stored(const Value& value, Stages stages, EngineNumerics& engine) {
  if (value.node().kind == YamlNode::Kind::scalar) {
    engine.stored = value.choice("way to store stages", names_of(all_storage_presets())).value_or("");
    return;
  }
  const std::vector<Entry> entries = Map(value).entries();
  if (value.node().kind == YamlNode::Kind::map && entries.empty())
    value.refuse("expected at least one stage, found none");
  for (const Entry& entry : entries) {
    const auto pick = read_stage_word(entry.key, stages);
    const auto type = entry.value.choice("type of a stage", {"f32", "bf16", "f16"});
    if (!pick || !type) continue;
    for (const Stage stage : pick->stages) {
      std::erase_if(engine.stages, [&](const auto& before) { return before.first == stage; });
      if (payload_of(stage) == Payload::values)
        engine.stages.emplace_back(stage, *type == "bf16" ? DType::bf16 : *type == "f16" ? DType::f16 : DType::f32);
    }
  }
}

// One of all stages, or by stage, of which the last word counts.
void read_scales(const Value& value, Stages stages, EngineNumerics& engine) {
  const auto give = [&](const Value& number, const auto& picked) {
    const auto scale = number.number();
    if (!scale) return;
    const auto kept = static_cast<float>(*scale);
    if (!(kept > 0) || !std::isfinite(kept)) return number.refuse("expected a scale above 0, in the range of f32");
    for (const Stage stage : picked) {
      std::erase_if(engine.scales, [&](const auto& before) { return before.first == stage; });
      if (payload_of(stage) == Payload::values) engine.scales.emplace_back(stage, kept);
    }
  };
  if (value.node().kind == YamlNode::Kind::scalar) return give(value, stages);
  const std::vector<Entry> entries = Map(value).entries();
  if (value.node().kind == YamlNode::Kind::map && entries.empty())
    value.refuse("expected at least one stage, found none");
  for (const Entry& entry : entries)
    if (const auto pick = read_stage_word(entry.key, stages)) give(entry.value, pick->stages);
}

// A name, or a name with its scales: {fp8_static: 0.02}.
void read_reads(const Value& value, Stages stages, EngineNumerics& engine) {
  const auto name_in = [&](const Value& word) {
    engine.reads = word.choice("way to read activations", names_of(all_reads())).value_or("");
    return find_reads(engine.reads);
  };
  if (value.node().kind == YamlNode::Kind::scalar) {
    if (const Reads* reads = name_in(value); reads && reads->scale == Reads::Scale::must)
      value.refuse(
          fmt::format("{0} needs a scale: {{{0}: 0.02}}, or one by stage: {{{0}: {{all: 0.02}}}}", reads->name));
    return;
  }
  const std::vector<Entry> entries = Map(value).entries();
  if (value.node().kind != YamlNode::Kind::map) return;
  if (entries.size() != 1)
    return value.refuse(fmt::format("expected one way to read activations, found {}", entries.size()));
  const Reads* reads = name_in(entries[0].key);
  if (!reads) return;
  if (reads->scale == Reads::Scale::none)
    return entries[0].key.refuse(fmt::format("{} finds its scales itself: write reads: {}", reads->name, reads->name));
  read_scales(entries[0].value, stages, engine);
}

// Names of public forms, by key.
void read_variants(const Value& value, EngineNumerics& engine) {
  const std::vector<Entry> entries = Map(value).entries();
  if (value.node().kind == YamlNode::Kind::map && entries.empty())
    value.refuse("expected at least one variant, found none");
  for (const Entry& entry : entries) {
    const auto key = entry.key.choice("kind of variant", variant_keys());
    if (!key) continue;
    if (const auto name = entry.value.choice("variant", variant_names(*key))) engine.variants.emplace_back(*key, *name);
  }
}

EngineNumerics read_engine(Map& map, Stages stages) {
  EngineNumerics engine;
  if (const auto reads = map.find("reads")) read_reads(*reads, stages, engine);
  if (const auto weights = map.find("weights"))
    engine.weights = weights->choice("way to round weights", names_of(all_weight_types())).value_or("");
  if (const auto sums = map.find("accumulator"))
    engine.accumulator = sums->choice("accumulator", names_of(all_accumulators())).value_or("");
  if (const auto stored = map.find("stored")) read_stored(*stored, stages, engine);
  if (const auto cache = map.find("kv_cache"))
    engine.kv_cache = cache->choice("type of a KV cache", names_of(all_cache_types())).value_or("");
  if (const auto rotate = map.find("kv_rotate")) {
    engine.kv_rotate = rotate->choice("way to rotate keys and values", names_of(all_cache_rotations())).value_or("");
    const CacheType* type = find_cache_type(engine.kv_cache);
    const bool is_in_blocks = type && type->rounding && host::block_of(*type->rounding) > 1;
    if (engine.kv_rotate == "hadamard" && !is_in_blocks)
      rotate->refuse(
          fmt::format("keys and values are rotated for a quantised cache only, and kv_cache is {}: set it to "
                      "q8_0 or q4_0, or leave out kv_rotate",
                      engine.kv_cache.empty() ? "not set" : engine.kv_cache));
  }
  if (const auto variant = map.find("variant")) read_variants(*variant, engine);
  return engine;
}

// A recording computes nothing, so it takes nothing over and no plugin.
void refuse_beside_replay(Map& map, LaneSpec& lane) {
  lane.backend = "recording";
  for (const std::string_view key : {"backend", "inputs", "routing", "base", "as"})
    if (const auto value = map.find(key)) value->refuse("a lane with 'replay' computes nothing: remove one of the two");
  for (const Entry& entry : map.rest()) {
    const std::vector<std::string> known = {"numerics", "reads",    "weights",   "accumulator",
                                            "stored",   "kv_cache", "kv_rotate", "variant"};
    if (std::find(known.begin(), known.end(), entry.name()) == known.end())
      entry.key.refuse(unknown("key of a recording", entry.name(), known));
    if (entry.name() != "numerics") continue;
    std::vector<std::string> named{"auto"};
    for (const NamedNumerics& row : all_named_numerics()) named.emplace_back(row.name);
    lane.replay->fits_numerics = entry.value.choice("numerics of a recording", named).value_or("") == named.front();
  }
}

LaneSpec read_lane(const std::string& name, const Value& value, const Contract& contract) {
  Map map(value);
  LaneSpec lane;
  lane.name = name;
  lane.where = value.node().where;
  lane.replay = read_replay(map, contract);
  if (lane.replay)
    refuse_beside_replay(map, lane);
  else
    lane.backend = read_plugin(map, "backend", lane.backend_at);
  const auto inputs = map.find("inputs");
  const auto routing = map.find("routing");
  if (const auto base = map.find("base")) lane.base = read_lane_name(*base, contract);
  if (inputs) lane.inputs = read_lane_name(*inputs, contract);
  if (routing) lane.routing = read_lane_name(*routing, contract);
  if (inputs && routing)
    routing->refuse("a lane with 'inputs' takes its routing from there already: keep one of the two");
  lane.engine = read_engine(map, contract.stages);
  if (const auto as = map.find("as")) lane.as = read_lane_name(*as, contract);
  const auto options = map.rest();
  if (map.is_map() &&
      std::none_of(options.begin(), options.end(), [](const Entry& e) { return e.name() == "numerics"; }))
    value.refuse("the key 'numerics' is missing: a lane always states its numerics, such as f64 or f32");
  lane.options = read_options(map, fmt::format("lane '{}'", shown(name)));
  return lane;
}

// Each lane has at most one source, so following the sources from a lane ends, or comes back to it.
void check_cycles(const std::vector<Entry>& entries, const Contract& contract) {
  const auto& lanes = contract.lanes;
  std::vector<std::size_t> source(lanes.size(), lanes.size());
  for (std::size_t i = 0; i < lanes.size(); ++i) {
    const std::string& name = lanes[i].inputs.empty() ? lanes[i].routing : lanes[i].inputs;
    if (const LaneSpec* lane = find_lane(contract, name)) source[i] = static_cast<std::size_t>(lane - lanes.data());
  }
  std::vector<std::size_t> seen_from(lanes.size(), lanes.size());
  for (std::size_t start = 0; start < lanes.size(); ++start) {
    std::size_t i = start;
    while (i < lanes.size() && seen_from[i] == lanes.size()) {
      seen_from[i] = start;
      i = source[i];
    }
    if (i >= lanes.size() || seen_from[i] != start) continue;
    std::vector<std::string> round;
    for (std::size_t j = source[i]; j != i; j = source[j]) round.push_back(lanes[j].name);
    entries[i].value.refuse(round.empty() ? "a lane cannot take its inputs or routing from itself"
                                          : "takes its inputs or routing from itself by way of " + listed(round));
  }
}

// A base computes all steps, so it has none itself.
void check_bases(const std::vector<Entry>& entries, const Contract& contract) {
  for (std::size_t i = 0; i < entries.size(); ++i) {
    const LaneSpec* base = find_lane(contract, contract.lanes[i].base);
    if (contract.lanes[i].base.empty() || !base) continue;
    if (base == &contract.lanes[i])
      entries[i].value.refuse("a lane cannot be its own base: name one whose backend computes every step");
    else if (!base->base.empty())
      entries[i].value.refuse(
          fmt::format("the base '{}' has a base itself, '{}': name one whose backend computes "
                      "every step",
                      shown(base->name), shown(base->base)));
  }
}

}  // namespace

std::vector<std::string> lane_names(const Contract& contract) {
  std::vector<std::string> names;
  for (const LaneSpec& lane : contract.lanes) names.push_back(lane.name);
  return names;
}

const LaneSpec* find_lane(const Contract& contract, std::string_view name) {
  const auto it =
      std::find_if(contract.lanes.begin(), contract.lanes.end(), [&](const LaneSpec& l) { return l.name == name; });
  return it == contract.lanes.end() ? nullptr : &*it;
}

void read_lanes(const Value& value, Contract& contract) {
  const auto entries = Map(value).entries();
  if (value.node().kind == YamlNode::Kind::map && entries.empty())
    value.refuse("expected at least one lane, found none");
  // All names first: a lane may refer to one that comes later.
  for (const Entry& entry : entries) {
    entry.key.name();
    contract.lanes.emplace_back().name = entry.name();
  }
  for (std::size_t i = 0; i < entries.size(); ++i)
    contract.lanes[i] = read_lane(entries[i].name(), entries[i].value, contract);
  check_cycles(entries, contract);
  check_bases(entries, contract);
  check_replays(entries, contract);
}

void read_sinks(const Value& value, Contract& contract) {
  const auto entries = Map(value).entries();
  if (value.node().kind == YamlNode::Kind::map && entries.empty())
    value.refuse("expected at least one sink, found none");
  for (const Entry& entry : entries) {
    entry.key.name();
    Map map(entry.value);
    SinkSpec sink;
    sink.name = entry.name();
    sink.where = entry.value.node().where;
    sink.sink = read_plugin(map, "sink", sink.sink_at);
    sink.options = read_options(map, fmt::format("sink '{}'", shown(sink.name)));
    contract.sinks.push_back(std::move(sink));
  }
}

void read_oracle(const Value& value, Contract& contract) { contract.oracle = read_lane_name(value, contract); }

std::string read_lane_name(const Value& value, const Contract& contract) {
  const auto name = value.text();
  if (!name) return "";
  if (find_lane(contract, *name)) return *name;
  // Without any lane that is the mistake to tell.
  if (!contract.lanes.empty()) value.refuse(unknown("lane", *name, lane_names(contract)));
  return "";
}

}  // namespace moe_diag
