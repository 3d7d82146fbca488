// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <set>
#include <stdexcept>

#include "core/contract/section.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

std::optional<IndexSelection> read_indices(const Value& value, bool allow_last) {
  std::optional<IndexSelection> all;
  bool bad = false;
  for (const Value& part : value.one_or_more()) {
    const auto text = part.text();
    if (!text) {
      bad = true;
      continue;
    }
    try {
      const IndexSelection one = IndexSelection::parse(*text, allow_last);
      if (all)
        all->append(one);
      else
        all = one;
    } catch (const std::invalid_argument& e) {
      part.refuse(e.what());
      bad = true;
    }
  }
  return bad ? std::nullopt : all;
}

}  // namespace

std::optional<IndexSelection> read_layers(const Value& value) { return read_indices(value, false); }

std::vector<const PromptSpec*> prompts_of(const Contract& contract, const std::vector<std::string>& ids) {
  std::vector<const PromptSpec*> list;
  for (const PromptSpec& p : contract.prompts)
    if (ids.empty() || std::find(ids.begin(), ids.end(), p.id) != ids.end()) list.push_back(&p);
  return list;
}

std::optional<IndexSelection> read_positions(const Value& value, const Contract& contract,
                                             const std::vector<std::string>& prompts) {
  auto positions = read_indices(value, true);
  if (!positions) return positions;
  for (const PromptSpec* prompt : prompts_of(contract, prompts)) {
    if (prompt->tokens.empty()) continue;  // a mistake told elsewhere
    try {
      positions->resolve(prompt->length());
    } catch (const std::out_of_range& e) {
      value.refuse(fmt::format("prompt '{}': {}", shown(prompt->id), e.what()));
      return std::nullopt;
    }
  }
  return positions;
}

std::optional<StagePick> read_stage_word(const Value& word, Stages stages) {
  const auto text = word.text();
  if (!text) return std::nullopt;
  try {
    return pick_stages(*text, stages);
  } catch (const std::invalid_argument& e) {
    word.refuse(e.what());
    return std::nullopt;
  }
}

void check_layers(const Value& layers, const std::vector<Stage>& stages) {
  const bool any = std::any_of(stages.begin(), stages.end(), [](Stage s) { return info(s).scope == Scope::layer; });
  if (!any && !stages.empty())
    layers.refuse(fmt::format("{} belongs to no layer: remove 'layers'", name_of(stages.front())));
}

std::vector<std::string> read_names(const Value& value, std::string_view what, const std::vector<std::string>& known) {
  std::vector<std::string> names;
  std::set<std::string> seen;
  if (value.node().kind == YamlNode::Kind::scalar && value.node().text == "all") return known;
  for (const Value& item : value.one_or_more()) {
    const auto name = item.text();
    if (!name) continue;
    if (std::find(known.begin(), known.end(), *name) == known.end()) {
      // Without any that is the mistake to tell.
      if (!known.empty()) item.refuse(unknown(what, *name, known));
    } else if (!seen.insert(*name).second) {
      item.refuse(fmt::format("{} '{}' is named twice", what, shown(*name)));
    } else {
      names.push_back(*name);
    }
  }
  return names;
}

}  // namespace moe_diag
