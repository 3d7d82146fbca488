// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

#include "core/contract/metric.hpp"
#include "core/contract/section.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr int largest_k = 1'000'000;  // more than any vocabulary has

std::optional<Metric> read_metric(const Value& value) {
  const auto name = value.choice("metric", metric_names());
  if (!name) return std::nullopt;
  for (const MetricInfo& m : metric_table)
    if (m.name == *name) return m.metric;
  return std::nullopt;
}

// A key that belongs to one metric, and is refused with all others.
std::optional<Value> find_key_of(Metric owner, std::string_view key, bool required, Map& map,
                                 std::optional<Metric> metric) {
  const auto value = required && metric == owner ? map.require(key) : map.find(key);
  if (value && metric && metric != owner) {
    value->refuse(fmt::format("is for the metric {}: remove it", name_of(owner)));
    return std::nullopt;
  }
  return value;
}

void read_tolerances(Map& map, FalsifierSpec& spec, std::optional<Metric> metric) {
  for (auto& [key, tolerance] : {std::pair<std::string_view, double&>{"rtol", spec.rtol}, {"atol", spec.atol}}) {
    const auto value = find_key_of(Metric::mismatch_fraction, key, true, map, metric);
    if (!value) continue;
    tolerance = value->number().value_or(0);
    if (tolerance < 0) value->refuse("expected a number that is not negative");
  }
}

// What an error is counted in: that of another lane, or the one expected of the lane's numerics.
void read_floor(Map& map, FalsifierSpec& spec, std::optional<Metric> metric, const Contract& contract) {
  constexpr std::string_view expected = "expected";
  const auto value = find_key_of(Metric::noise_ratio, "floor", true, map, metric);
  const auto name = value ? value->text() : std::nullopt;
  if (!name) return;
  const bool is_lane = find_lane(contract, *name) != nullptr;
  if (*name == expected) {
    if (is_lane) value->refuse("stands for the error expected of the numerics, and for a lane: rename the lane");
    return;
  }
  if (!is_lane) {
    std::vector<std::string> known = lane_names(contract);
    known.emplace_back(expected);
    value->refuse(unknown("floor", *name, known));
  } else if (*name == spec.lane) {
    value->refuse("the lane judged cannot be its own floor");
  } else if (*name == spec.against) {
    value->refuse(fmt::format("the error of '{}' against itself is 0, which is no floor", shown(*name)));
  }
  spec.floor = *name;
}

void read_parameters(Map& map, FalsifierSpec& spec, std::optional<Metric> metric, const Contract& contract) {
  read_tolerances(map, spec, metric);
  if (const auto k = find_key_of(Metric::topk_overlap, "k", false, map, metric))
    spec.k = static_cast<int>(k->whole(1, largest_k).value_or(spec.k));
  read_floor(map, spec, metric, contract);
  if (const auto share = find_key_of(Metric::noise_ratio, "least_tested", false, map, metric)) {
    spec.least_tested = share->number().value_or(spec.least_tested);
    if (!(spec.least_tested >= 0 && spec.least_tested <= 1)) share->refuse("expected a share from 0 to 1");
  }
}

// The lane compared with: as written, else the oracle where the metric takes one.
void read_against(Map& map, FalsifierSpec& spec, std::optional<Metric> metric, const Contract& contract) {
  const auto value = map.find("against");
  if (value) {
    spec.against = read_lane_name(*value, contract);
    if (metric == Metric::nonfinite)
      value->refuse(
          "nonfinite counts what the lane itself has: remove 'against', or use nonfinite_beyond, which counts "
          "what it has beyond the other lane");
    else if (metric && info(*metric).sides == Sides::one)
      value->refuse(fmt::format("{} looks at one lane: remove 'against'", info(*metric).name));
    else if (!spec.against.empty() && spec.against == spec.lane)
      value->refuse(fmt::format("lane '{}' is compared with itself", shown(spec.lane)));
    return;
  }
  if (!metric || info(*metric).sides == Sides::one || spec.lane.empty()) return;
  const bool is_oracle = spec.lane == contract.oracle;
  if (!is_oracle) spec.against = contract.oracle;
  if (!spec.against.empty()) return;
  map.value().refuse(
      is_oracle
          ? fmt::format("{} compares with another lane, and '{}' is the oracle itself: add 'against: <lane>'",
                        info(*metric).name, shown(spec.lane))
          : fmt::format("{} compares with another lane: add 'against: <lane>', or 'oracle: <lane>' to the contract",
                        info(*metric).name));
}

// A word for what a recording has; none for names of stages.
std::optional<FalsifierSpec::Recorded> recorded_word(const Value& word) {
  using Recorded = FalsifierSpec::Recorded;
  if (word.node().kind != YamlNode::Kind::scalar) return std::nullopt;
  for (const auto& [name, which] : {std::pair<std::string_view, Recorded>{"recorded", Recorded::all},
                                    {"steps", Recorded::steps},
                                    {"spans", Recorded::spans}})
    if (word.node().text == name) return which;
  return std::nullopt;
}

// Names must fit the metric; a glob takes what fits.
void read_stages(const Value& value, FalsifierSpec& spec, std::optional<Metric> metric, Stages known) {
  for (const Value& word : value.one_or_more()) {
    const auto recorded = recorded_word(word);
    spec.recorded = recorded.value_or(spec.recorded);
    const auto pick = recorded ? std::optional(pick_stages("all", known)) : read_stage_word(word, known);
    if (!pick) continue;
    spec.stages.text += (spec.stages.text.empty() ? "" : ", ") + word.node().text;
    std::size_t fitting = 0;
    for (Stage s : pick->stages) {
      if (metric && !fits(spec, *metric, s)) continue;
      ++fitting;
      spec.stages.stages.push_back(s);
    }
    if (fitting == 0)
      word.refuse(fmt::format("{} does not fit {}: it fits {}", info(*metric).name,
                              pick->named ? fmt::format("the stage {}", name_of(pick->stages.front()))
                                          : fmt::format("any stage of '{}'", shown(word.node().text)),
                              fitting_stages(spec, *metric, known)));
  }
  put_in_forward_order(spec.stages.stages);
}

void read_controls(const Value& value, FalsifierSpec& spec, const Contract& contract, bool judged) {
  for (const Value& item : value.items()) {
    auto fault = read_fault(item, contract, &spec);
    if (!fault) continue;
    const std::string why = judged ? blind_to(spec, *fault, contract) : "";
    if (!why.empty()) item.refuse(fmt::format("this control can never be seen: {}", why));
    spec.controls.push_back(std::move(*fault));
  }
}

std::vector<std::string> read_tags(const Value& value) {
  std::vector<std::string> tags;
  for (const Value& item : value.one_or_more()) {
    const auto tag = item.name();
    if (!tag) continue;
    if (std::find(tags.begin(), tags.end(), *tag) != tags.end())
      item.refuse(fmt::format("the tag '{}' is there twice", shown(*tag)));
    tags.push_back(*tag);
  }
  return tags;
}

// Experts are told apart where their values are compared one by one, or counted.
void read_experts(const Value& value, FalsifierSpec& spec, std::optional<Metric> metric) {
  spec.experts = read_layers(value);
  const auto& stages = spec.stages.stages;
  const auto other = std::find_if_not(stages.begin(), stages.end(), holds_experts);
  if (other != stages.end())
    return value.refuse(fmt::format("{} does not hold experts one by one: {} do", name_of(*other),
                                    stages_listed(other->siblings(), holds_experts)));
  if (metric == Metric::identical)
    value.refuse("experts are compared one by one with another lane's: 'identical' compares whole rows");
}

void read_selections(Map& map, FalsifierSpec& spec, std::optional<Metric> metric, const Contract& contract) {
  if (metric && !has_stage(*metric)) {
    refuse_stage_keys(map, *metric);
    if (const auto prompts = map.find("prompts")) spec.prompts = read_prompt_ids(*prompts, contract);
    return;
  }
  if (const auto stage = map.require("stage")) read_stages(*stage, spec, metric, contract.stages);
  if (const auto layers = map.find("layers")) {
    spec.layers = read_layers(*layers).value_or(IndexSelection::all());
    check_layers(*layers, spec.stages.stages);
  }
  if (const auto experts = map.find("experts")) read_experts(*experts, spec, metric);
  if (const auto prompts = map.find("prompts")) spec.prompts = read_prompt_ids(*prompts, contract);
  if (const auto positions = map.find("positions"))
    spec.positions = read_positions(*positions, contract, spec.prompts).value_or(IndexSelection::all());
}

FalsifierSpec read_falsifier(Map& map, const Contract& contract) {
  const std::size_t before = map.value().mistakes().count();
  FalsifierSpec spec;
  spec.where = map.value().node().where;
  if (const auto id = map.require("id"))
    if (const auto name = id->name()) {
      spec.id = *name;
      map.rename("falsifiers." + *name);
    }
  if (const auto claim = map.require("claim")) spec.claim = claim->text().value_or("");
  if (const auto lane = map.require("lane")) spec.lane = read_lane_name(*lane, contract);
  const auto metric_value = map.require("metric");
  auto metric = metric_value ? read_metric(*metric_value) : std::nullopt;
  if (metric) spec.metric = *metric;
  if (!read_alone(map, spec, metric, contract)) metric.reset();
  read_against(map, spec, metric, contract);
  read_selections(map, spec, metric, contract);
  spec.bound = read_bound(map, "a falsifier", metric).value_or(Bound{});
  read_overrides(map, spec, metric);
  read_parameters(map, spec, metric, contract);
  // A control is judged only against a falsifier that is right itself.
  const bool judged = map.value().mistakes().count() == before;
  if (const auto controls = map.find("controls")) read_controls(*controls, spec, contract, judged);
  if (const auto tags = map.find("tags")) spec.tags = read_tags(*tags);
  map.finish();
  return spec;
}

}  // namespace

void read_falsifiers(const Value& value, Contract& contract) {
  std::map<std::string, std::string> places;
  for (const Value& item : value.items()) {
    Map map(item);
    FalsifierSpec spec = read_falsifier(map, contract);
    const auto [first, is_new] = places.emplace(spec.id, item.place());
    if (!is_new && !spec.id.empty())
      item.refuse(fmt::format("the id '{}' is taken by the falsifier at {}", spec.id, first->second));
    contract.falsifiers.push_back(std::move(spec));
  }
  contract.stated = contract.falsifiers.size();
}

}  // namespace moe_diag
