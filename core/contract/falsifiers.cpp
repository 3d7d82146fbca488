// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

#include "core/contract/metric.hpp"
#include "core/contract/nearest.hpp"
#include "core/contract/section.hpp"

namespace moe_diag {
namespace {

std::optional<Metric> read_metric(const Value& value) {
  const auto name = value.choice("metric", metric_names());
  if (!name) return std::nullopt;
  for (const MetricInfo& m : metric_table)
    if (m.name == *name) return m.metric;
  return std::nullopt;
}

void read_bound(Map& map, FalsifierSpec& spec, std::optional<Metric> metric) {
  int given = 0;
  for (const Bound::Kind kind : {Bound::Kind::at_least, Bound::Kind::at_most, Bound::Kind::equals}) {
    const auto value = map.find(name_of(kind));
    if (!value) continue;
    if (++given > 1) value->refuse("a falsifier has one threshold: keep one of at_least, at_most and equals");
    const auto number = value->number();
    if (!number) continue;
    spec.bound = {kind, *number};
    const std::string why = metric ? objection(*metric, spec.bound) : "";
    if (!why.empty()) value->refuse(why);
  }
  if (given == 0 && map.is_map()) map.value().refuse("a threshold is missing: one of at_least, at_most and equals");
}

void read_tolerances(Map& map, FalsifierSpec& spec, std::optional<Metric> metric) {
  for (auto& [key, tolerance] : {std::pair<std::string_view, double&>{"rtol", spec.rtol}, {"atol", spec.atol}}) {
    const bool wanted = metric == Metric::mismatch_fraction;
    const auto value = wanted ? map.require(key) : map.find(key);
    if (!value) continue;
    tolerance = value->number().value_or(0);
    if (tolerance < 0) value->refuse("expected a number that is not negative");
    if (metric && !wanted) value->refuse("is for the metric mismatch_fraction: remove it");
  }
}

// The lane compared with: as written, else the oracle where the metric takes one.
void read_against(Map& map, FalsifierSpec& spec, std::optional<Metric> metric, const Contract& contract) {
  const auto value = map.find("against");
  if (value) {
    spec.against = read_lane_name(*value, contract);
    if (metric && info(*metric).sides == Sides::one)
      value->refuse(fmt::format("{} looks at one lane: remove 'against'", info(*metric).name));
    else if (!spec.against.empty() && spec.against == spec.lane)
      value->refuse(fmt::format("lane '{}' is compared with itself", shown(spec.lane)));
    return;
  }
  if (!metric || info(*metric).sides == Sides::one || spec.lane.empty()) return;
  const bool is_oracle = spec.lane == contract.oracle;
  if (!is_oracle) spec.against = contract.oracle;
  if (!needs_against(*metric) || !spec.against.empty()) return;
  map.value().refuse(
      is_oracle
          ? fmt::format("{} compares with another lane, and '{}' is the oracle itself: add 'against: <lane>'",
                        info(*metric).name, shown(spec.lane))
          : fmt::format("{} compares with another lane: add 'against: <lane>', or 'oracle: <lane>' to the contract",
                        info(*metric).name));
}

// Names must fit the metric; a glob takes what fits.
void read_stages(const Value& value, FalsifierSpec& spec, std::optional<Metric> metric) {
  for (const Value& word : value.one_or_more()) {
    const auto pick = read_stage_word(word);
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
                              fitting_stages(spec, *metric)));
  }
  auto& stages = spec.stages.stages;
  std::sort(stages.begin(), stages.end());
  stages.erase(std::unique(stages.begin(), stages.end()), stages.end());
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

void read_selections(Map& map, FalsifierSpec& spec, std::optional<Metric> metric, const Contract& contract) {
  if (metric && !has_stage(*metric)) {
    refuse_stage_keys(map, *metric);
    if (const auto prompts = map.find("prompts")) spec.prompts = read_prompt_ids(*prompts, contract);
    return;
  }
  if (const auto stage = map.require("stage")) read_stages(*stage, spec, metric);
  if (const auto layers = map.find("layers")) {
    spec.layers = read_layers(*layers).value_or(IndexSelection::all());
    check_layers(*layers, spec.stages.stages);
  }
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
  if (!read_solo(map, spec, metric, contract)) metric.reset();
  read_against(map, spec, metric, contract);
  read_selections(map, spec, metric, contract);
  read_bound(map, spec, metric);
  read_tolerances(map, spec, metric);
  // A control is judged only against a falsifier that is right itself.
  const bool judged = map.value().mistakes().count() == before;
  if (const auto controls = map.find("controls")) read_controls(*controls, spec, contract, judged);
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
}

}  // namespace moe_diag
