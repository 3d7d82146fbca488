// SPDX-License-Identifier: MIT
#include "core/contract/override.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string_view>
#include <vector>

#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

// What a step of a path may be called: a map's keys; a list's ids and numbers.
std::vector<std::string> steps_of(const YamlNode& node) {
  std::vector<std::string> names;
  if (node.kind == YamlNode::Kind::map)
    for (const YamlNode& key : node.keys) names.push_back(key.text);
  if (node.kind != YamlNode::Kind::list) return names;
  for (std::size_t i = 0; i < node.items.size(); ++i) {
    const YamlNode& item = node.items[i];
    std::string name = std::to_string(i);
    for (std::size_t k = 0; k < item.keys.size(); ++k)
      if (item.keys[k].text == "id" && item.items[k].kind == YamlNode::Kind::scalar) name = item.items[k].text;
    names.push_back(std::move(name));
  }
  return names;
}

// True when `path` is `step` or continues with a '.' after it.
bool begins_with(std::string_view path, std::string_view step) {
  return path.substr(0, step.size()) == step && (path.size() == step.size() || path[step.size()] == '.');
}

struct Found {
  YamlNode* node = nullptr;
  std::size_t length = 0;  // of the step in the path
};

// Ids may hold dots, so the longest name that fits is taken.
Found child_of(YamlNode& node, std::string_view path) {
  Found best;
  const std::vector<std::string> names = steps_of(node);
  for (std::size_t i = 0; i < names.size(); ++i)
    if (!names[i].empty() && begins_with(path, names[i]) && names[i].size() > best.length)
      best = {&node.items[i], names[i].size()};
  if (best.node || node.kind != YamlNode::Kind::list) return best;
  for (std::size_t i = 0; i < node.items.size(); ++i)
    if (begins_with(path, std::to_string(i))) return {&node.items[i], std::to_string(i).size()};
  return best;
}

// A replaced node stands where the old one did, for messages that come later.
void place_at(YamlNode& node, const Where& where) {
  node.where = where;
  for (YamlNode& key : node.keys) place_at(key, where);
  for (YamlNode& item : node.items) place_at(item, where);
}

void add_key(YamlNode& map, std::string name, YamlNode value) {
  place_at(value, map.where);
  YamlNode key;
  key.kind = YamlNode::Kind::scalar;
  key.text = std::move(name);
  key.where = map.where;
  key.origin = value.origin;
  map.keys.push_back(std::move(key));
  map.items.push_back(std::move(value));
}

}  // namespace

void apply_override(YamlNode& root, const Override& change, Mistakes& mistakes) {
  const std::string origin = "--set " + shown(change.first);
  const std::size_t before = mistakes.count();
  auto value = parse_document(change.second, origin, mistakes);
  if (mistakes.count() != before) return;
  if (!value) value.emplace();
  value->origin = origin;

  YamlNode* node = &root;
  std::string_view rest = change.first;
  const bool appends = rest.ends_with('+');
  if (appends) rest.remove_suffix(1);
  for (Found next = child_of(*node, rest); next.node; next = child_of(*node, rest)) {
    node = next.node;
    if (rest.size() == next.length) {
      place_at(*value, node->where);
      if (!appends)
        *node = std::move(*value);
      else if (node->kind == YamlNode::Kind::list)
        node->items.push_back(std::move(*value));
      else
        mistakes.add(node->where, origin, "'+=' adds an item to a list, and this is none");
      return;
    }
    rest.remove_prefix(next.length + 1);
  }
  const std::string_view step = rest.substr(0, rest.find('.'));
  if (step.empty()) {
    mistakes.add(node->where, origin, "expected KEY.PATH=VALUE");
  } else if (node->kind == YamlNode::Kind::map && step.size() == rest.size()) {
    if (appends) {
      YamlNode list;
      list.kind = YamlNode::Kind::list;
      list.origin = origin;
      place_at(*value, node->where);
      list.items.push_back(std::move(*value));
      *value = std::move(list);
    }
    add_key(*node, std::string(step), std::move(*value));
  } else {
    mistakes.add(node->where, origin, unknown("key", step, steps_of(*node)));
  }
}

}  // namespace moe_diag
