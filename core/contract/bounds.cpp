// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/contract/metric.hpp"
#include "core/contract/section.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

template <class T>
bool contains(const std::vector<T>& list, const T& value) {
  return std::find(list.begin(), list.end(), value) != list.end();
}

// The stages of the falsifier that a word picks; a mistake when there are none, or overrides before have `taken` them.
std::vector<Stage> read_override_word(const Value& word, const FalsifierSpec& spec, const std::vector<Stage>& taken) {
  const auto pick = read_stage_word(word, spec.stages.stages.front().siblings());
  if (!pick) return {};
  std::vector<Stage> looked_at;
  for (Stage stage : pick->stages)
    if (contains(spec.stages.stages, stage)) looked_at.push_back(stage);
  if (looked_at.empty())
    word.refuse(fmt::format("matches nothing: the falsifier looks at {}", shown(spec.stages.text)));
  else if (std::all_of(looked_at.begin(), looked_at.end(), [&](Stage s) { return contains(taken, s); }))
    word.refuse("is never in force: overrides before it match the same stages");
  return looked_at;
}

void read_per_stage(const Value& list, FalsifierSpec& spec, std::optional<Metric> metric) {
  std::vector<Stage> taken;
  for (const Value& item : list.items()) {
    Map map(item);
    StageBound entry;
    if (const auto stage = map.require("stage"); stage && !spec.stages.stages.empty())
      for (const Value& word : stage->one_or_more()) {
        const std::vector<Stage> picked = read_override_word(word, spec, taken);
        entry.stages.insert(entry.stages.end(), picked.begin(), picked.end());
      }
    taken.insert(taken.end(), entry.stages.begin(), entry.stages.end());
    entry.bound = read_bound(map, "an override", metric).value_or(Bound{});
    map.finish();
    spec.per_stage.push_back(std::move(entry));
  }
}

void read_per_type(const Value& list, FalsifierSpec& spec, std::optional<Metric> metric) {
  std::vector<BlockType> taken;
  for (const Value& item : list.items()) {
    Map map(item);
    TypeBound entry;
    entry.path = item.path();
    entry.where = item.node().where;
    if (const auto type = map.require("type"))
      for (const Value& word : type->one_or_more())
        if (const auto one = read_block_type(word)) {
          if (contains(taken, *one)) word.refuse("is never in force: an override before it is for the same type");
          entry.types.push_back(*one);
        }
    taken.insert(taken.end(), entry.types.begin(), entry.types.end());
    entry.bound = read_bound(map, "an override", metric).value_or(Bound{});
    map.finish();
    spec.per_type.push_back(std::move(entry));
  }
}

}  // namespace

std::optional<BlockType> read_block_type(const Value& value) {
  const auto text = value.text();
  if (!text) return std::nullopt;
  std::vector<std::string> known;
  for (const BlockInfo& block : block_table) {
    if (lower(block.name) == lower(*text)) return block.type;
    known.emplace_back(block.name);
  }
  value.refuse(unknown("type", *text, known));
  return std::nullopt;
}

std::optional<Bound> read_bound(Map& map, std::string_view owner, std::optional<Metric> metric) {
  std::optional<Bound> bound;
  int given = 0;
  for (const Bound::Kind kind : {Bound::Kind::at_least, Bound::Kind::at_most, Bound::Kind::equals}) {
    const auto value = map.find(name_of(kind));
    if (!value) continue;
    if (++given > 1)
      value->refuse(fmt::format("{} has one threshold: keep one of at_least, at_most and equals", owner));
    const auto number = value->number();
    if (!number) continue;
    bound = {kind, *number};
    const std::string why = metric ? objection(*metric, *bound) : "";
    if (!why.empty()) value->refuse(why);
  }
  // A misspelt one is an unknown key, which finish() tells.
  const std::vector<std::string> names{"at_least", "at_most", "equals"};
  const auto rest = map.rest();
  const bool is_misspelt =
      std::any_of(rest.begin(), rest.end(), [&](const Entry& e) { return nearest(e.name(), names).has_value(); });
  if (given == 0 && map.is_map() && !is_misspelt)
    map.value().refuse("a threshold is missing: one of at_least, at_most and equals");
  return bound;
}

void read_overrides(Map& map, FalsifierSpec& spec, std::optional<Metric> metric) {
  if (const auto list = map.find("per_stage")) read_per_stage(*list, spec, metric);
  if (const auto list = map.find("per_type")) read_per_type(*list, spec, metric);
}

}  // namespace moe_diag
