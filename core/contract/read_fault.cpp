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

void read_type(Map& map, FaultSpec& fault, std::optional<Kind> kind) {
  const auto type = find_key_of({Kind::wrong_type, Kind::accumulate, Kind::cache_type}, "type", map, kind);
  if (!type) return;
  fault.type = read_block_type(*type);
  if (!fault.type) return;
  const auto check = [&](std::initializer_list<BlockType> taken) {
    if (std::find(taken.begin(), taken.end(), *fault.type) != taken.end()) return;
    std::vector<std::string_view> names;
    for (const BlockType one : taken) names.push_back(name_of(one));
    type->refuse(fmt::format("{} takes {}, found {}", name_of(*kind), fmt::join(names, ", "), name_of(*fault.type)));
  };
  if (kind == Kind::accumulate) check({BlockType::bf16, BlockType::f16});
  if (kind == Kind::cache_type) check({BlockType::f16, BlockType::bf16, BlockType::q8_0, BlockType::q4_0});
}

void read_strength(Map& map, FaultSpec& fault, std::optional<Kind> kind) {
  const auto positive = [](const Value& value, double& number) {
    number = value.number().value_or(number);
    if (number <= 0) value.refuse("expected a number above 0");
  };
  if (const auto factor = find_key_of({Kind::scale, Kind::rope_scaled}, "factor", map, kind)) {
    fault.factor = factor->number().value_or(fault.factor);
    if (fault.factor == 1) factor->refuse("a factor of 1 changes nothing");
    if (kind == Kind::rope_scaled && fault.factor <= 0) factor->refuse("expected a number above 0");
  }
  read_type(map, fault, kind);
  if (const auto theta = find_key_of({Kind::rope_theta}, "theta", map, kind)) positive(*theta, fault.theta);
  if (const auto limit = find_key_of({Kind::f16_overflow}, "limit", map, kind)) positive(*limit, fault.limit);
  if (const auto eps = find_key_of({Kind::eps}, "eps", map, kind)) {
    fault.eps = eps->number().value_or(fault.eps);
    if (fault.eps < 0) eps->refuse("expected 0 or more");
  }
  if (const auto block = find_key_of({Kind::quantise_activations}, "block", map, kind)) {
    const auto size = block->whole(1, largest_index);
    if (size && *size != 32 && *size != 256) block->refuse(fmt::format("expected 32 or 256, found {}", *size));
    fault.block = static_cast<int>(size.value_or(fault.block));
  }
}

void read_counts(Map& map, FaultSpec& fault, std::optional<Kind> kind) {
  const auto count = [&](Kind owner, std::string_view key, int lowest, int& into) {
    if (const auto value = find_key_of({owner}, key, map, kind))
      into = static_cast<int>(value->whole(lowest, largest_index).value_or(into));
  };
  count(Kind::rope_partial, "columns", 2, fault.columns);
  count(Kind::position_restart, "every", 1, fault.every);
  count(Kind::window, "keys", 1, fault.keys);
  if (const auto part = find_key_of({Kind::partial_sum}, "part", map, kind)) fault.part = read_layers(*part);
  if (const auto times = find_key_of({Kind::softmax_scale, Kind::partial_sum}, "times", map, kind)) {
    fault.times = static_cast<int>(times->whole(0, 2).value_or(fault.times));
    if (fault.times == 1) times->refuse("once changes nothing: expected 0 or 2");
  }
}

void read_form(Map& map, FaultSpec& fault, std::optional<Kind> kind) {
  const auto form = find_key_of({Kind::norm, Kind::activation, Kind::gate_up, Kind::gating}, "form", map, kind);
  if (!form || !kind || !fits(*kind, fault.stage)) return;
  const auto word = form->choice(fmt::format("form of {} at {}", name_of(*kind), name_of(fault.stage)),
                                 form_names(*kind, fault.stage));
  for (const FormInfo& row : form_table)
    if (word && row.kind == *kind && row.name == *word) fault.form = row.form;
}

// The part of a fault's text that its kind's own keys say.
std::string strength_of(const FaultSpec& fault) {
  switch (fault.kind) {
    case Kind::scale: return fmt::format(" by {}", fault.factor);
    case Kind::rope_theta: return fmt::format(" {}", fault.theta);
    case Kind::quantise_activations: return fmt::format(" in blocks of {}", fault.block);
    case Kind::eps: return fmt::format(" {}", fault.eps);
    case Kind::rope_partial: return fault.columns > 0 ? fmt::format(" of {} columns", fault.columns) : "";
    case Kind::rope_scaled: return fmt::format(" by {}", fault.factor);
    case Kind::position_restart: return fmt::format(" every {}", fault.every);
    case Kind::window: return fmt::format(" of {} keys", fault.keys);
    case Kind::softmax_scale: return fault.times == 0 ? " left out" : " twice";
    case Kind::partial_sum:
      return fmt::format(" {}{}", fault.times == 0 ? "without" : "with twice",
                         fault.part ? " " + fault.part->text() : " the second half");
    case Kind::f16_overflow: return fault.limit == FaultSpec().limit ? "" : fmt::format(" beyond {}", fault.limit);
    default: return "";
  }
}

std::string text_of(const FaultSpec& fault) {
  std::string text(name_of(fault.kind));
  if (fault.bit >= 0) text += fmt::format(" of bit {}", fault.bit);
  if (fault.type) text += fmt::format(" {}", name_of(*fault.type));
  if (const Fault::Form form = form_of(fault); form != Fault::Form::none) text += fmt::format(" {}", name_of(form));
  text += strength_of(fault);
  text += fmt::format(" at {}", name_of(fault.stage));
  if (fault.layer >= 0) text += fmt::format(", layer {}", fault.layer);
  if (fault.positions.text() != "all") text += ", positions " + fault.positions.text();
  if (fault.index > 0) text += fmt::format(", element {}", fault.index);
  if (fault.expert >= 0) text += fmt::format(", expert {}", fault.expert);
  return text;
}

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
  read_counts(map, fault, kind);
  read_form(map, fault, kind);
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
