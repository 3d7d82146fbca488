// SPDX-License-Identifier: MIT
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstddef>
#include <initializer_list>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/contract/section.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

using Kind = FaultSpec::Kind;

constexpr int highest_layer = 100'000;
constexpr int largest_index = 1'000'000'000;
constexpr int largest_expert = 1'000'000;
constexpr int highest_bit = 63;

std::optional<Kind> read_kind(const Value& value) {
  const auto word = value.choice("fault", fault_names());
  if (!word) return std::nullopt;
  for (const FaultInfo& f : fault_table)
    if (f.name == *word) return f.kind;
  return std::nullopt;
}

void read_site(Map& map, FaultSpec& fault, bool kind_known, Stages stages) {
  const auto stage = map.require("stage");
  const auto layer = map.find("layer");
  if (layer) fault.layer = static_cast<int>(layer->whole(0, highest_layer).value_or(0));
  if (!stage) return;
  const auto pick = read_stage_word(*stage, stages);
  if (!pick) return;
  if (!pick->named) {
    stage->refuse(fmt::format("a fault is planted at one stage: name it, instead of '{}'", shown(stage->node().text)));
    return;
  }
  fault.stage = pick->stages.front();
  if (kind_known && !fits(fault.kind, fault.stage))
    stage->refuse(fmt::format("{} cannot be planted at {}: it fits {}", name_of(fault.kind), name_of(fault.stage),
                              fitting_stages(fault.kind, fault.stage.siblings())));
  const bool in_layer = info(fault.stage).scope == Scope::layer;
  if (in_layer && !layer)
    map.value().refuse(fmt::format("the key 'layer' is missing: {} is in every layer", name_of(fault.stage)));
  if (!in_layer && layer) layer->refuse(fmt::format("{} belongs to no layer: remove 'layer'", name_of(fault.stage)));
}

// A key that belongs to some kinds, and is refused with all others.
std::optional<Value> find_key_of(std::initializer_list<Kind> owners, std::string_view key, Map& map,
                                 std::optional<Kind> kind) {
  const auto value = map.find(key);
  if (!value || !kind || std::find(owners.begin(), owners.end(), *kind) != owners.end()) return value;
  std::vector<std::string_view> names;
  for (Kind owner : owners) names.push_back(name_of(owner));
  value->refuse(
      fmt::format("is for the fault{} '{}': remove it", names.size() > 1 ? "s" : "", fmt::join(names, "', '")));
  return std::nullopt;
}

void read_element(Map& map, FaultSpec& fault, std::optional<Kind> kind) {
  if (const auto index = find_key_of({Kind::nan, Kind::inf, Kind::bitflip}, "index", map, kind))
    fault.index = static_cast<int>(index->whole(0, largest_index).value_or(0));
  if (const auto bit = find_key_of({Kind::bitflip}, "bit", map, kind))
    fault.bit = static_cast<int>(bit->whole(0, highest_bit).value_or(0));
  const auto expert = find_key_of({Kind::zero}, "expert", map, kind);
  if (!expert) return;
  fault.expert = static_cast<int>(expert->whole(0, largest_expert).value_or(0));
  if (!is_per_expert(fault.stage))
    expert->refuse(fmt::format("{} has no part of one expert: remove it", name_of(fault.stage)));
}

void read_strength(Map& map, FaultSpec& fault, std::optional<Kind> kind) {
  if (const auto factor = find_key_of({Kind::scale}, "factor", map, kind)) {
    fault.factor = factor->number().value_or(fault.factor);
    if (fault.factor == 1) factor->refuse("a factor of 1 changes nothing");
  }
  if (const auto type = find_key_of({Kind::wrong_type}, "type", map, kind)) fault.type = read_block_type(*type);
  if (const auto theta = find_key_of({Kind::rope_theta}, "theta", map, kind)) {
    fault.theta = theta->number().value_or(fault.theta);
    if (fault.theta <= 0) theta->refuse("expected a number above 0");
  }
  if (const auto block = find_key_of({Kind::quantise_activations}, "block", map, kind)) {
    const auto size = block->whole(1, largest_index);
    if (size && *size != 32 && *size != 256) block->refuse(fmt::format("expected 32 or 256, found {}", *size));
    fault.block = static_cast<int>(size.value_or(fault.block));
  }
}

std::string text_of(const FaultSpec& fault) {
  std::string text(name_of(fault.kind));
  if (fault.bit >= 0) text += fmt::format(" of bit {}", fault.bit);
  if (fault.kind == Kind::scale) text += fmt::format(" by {}", fault.factor);
  if (fault.type) text += fmt::format(" {}", name_of(*fault.type));
  if (fault.kind == Kind::rope_theta) text += fmt::format(" {}", fault.theta);
  if (fault.kind == Kind::quantise_activations) text += fmt::format(" in blocks of {}", fault.block);
  text += fmt::format(" at {}", name_of(fault.stage));
  if (fault.layer >= 0) text += fmt::format(", layer {}", fault.layer);
  if (fault.positions.text() != "all") text += ", positions " + fault.positions.text();
  if (fault.index > 0) text += fmt::format(", element {}", fault.index);
  if (fault.expert >= 0) text += fmt::format(", expert {}", fault.expert);
  return text;
}

// The selection as a value of a flow map: "all", "-1", "[0, 2..4]".
}  // namespace

std::optional<FaultSpec> read_fault(const Value& value, const Contract& contract, const FalsifierSpec* falsifier) {
  const std::size_t before = value.mistakes().count();
  Map map(value);
  FaultSpec fault;
  fault.where = value.node().where;
  const auto inject = map.require("inject");
  const auto kind = inject ? read_kind(*inject) : std::nullopt;
  if (kind) fault.kind = *kind;
  read_site(map, fault, kind.has_value(), contract.stages);
  if (falsifier)
    fault.lane = falsifier->lane;
  else if (const auto lane = map.require("lane"))
    fault.lane = read_lane_name(*lane, contract);
  if (const auto positions = map.find("positions")) {
    const auto prompts = falsifier ? falsifier->prompts : std::vector<std::string>();
    fault.positions = read_positions(*positions, contract, prompts).value_or(IndexSelection::all());
  }
  read_element(map, fault, kind);
  read_strength(map, fault, kind);
  map.finish();
  if (value.mistakes().count() != before) return std::nullopt;
  fault.text = text_of(fault);
  return fault;
}

void read_planted(const Value& value, Contract& contract) {
  for (const Value& item : value.items())
    if (auto fault = read_fault(item, contract, nullptr)) contract.planted.push_back(std::move(*fault));
}

FaultSpec parse_fault(const std::string& text, const Contract& contract) {
  const std::string origin = "--inject";
  Mistakes mistakes(origin);
  auto node = parse_document(text, origin, mistakes);
  mistakes.raise();
  if (!node) node.emplace();
  node->origin = origin;
  const auto fault = read_fault(Value(*node, "", mistakes), contract, nullptr);
  mistakes.raise();
  return *fault;
}

}  // namespace moe_diag
