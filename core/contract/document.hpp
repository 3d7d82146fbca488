// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/contract/where.hpp"

namespace moe_diag {

// A piece of a YAML file as it was written: no scalar is converted, no duplicate key is lost.
struct YamlNode {
  enum class Kind { null, scalar, list, map };
  Kind kind = Kind::null;
  bool quoted = false;          // scalar
  std::string text;             // scalar
  std::vector<YamlNode> keys;   // map: as many as items
  std::vector<YamlNode> items;  // list: its items; map: its values
  Where where;
  std::string origin;  // "--set a.b" when it does not come from the file
};

// Collects what is wrong with a contract, so that one run shows it all.
class Mistakes {
 public:
  explicit Mistakes(std::string path) : path_(std::move(path)) {}

  void add(const YamlNode& node, const std::string& message) { add(node.where, node.origin, message); }
  void add(const Where& where, const std::string& origin, const std::string& message);
  // A message that has its place already.
  void add(const Where& where, std::string text);

  // "file:line:column", or the origin.
  std::string place(const Where& where, const std::string& origin) const;
  std::string place(const YamlNode& node) const { return place(node.where, node.origin); }

  std::size_t count() const { return list_.size() + more_; }
  // Throws Error(usage) with a line per mistake, in the order of the file, if there is any.
  void raise() const;

 private:
  struct Mistake {
    Where where;
    std::string text;
  };
  std::string path_;
  std::vector<Mistake> list_;
  std::size_t more_ = 0;
};

// The single document in `text`, or none after a mistake was added. `origin` is set on all its nodes.
// Refused: text that is not UTF-8, control characters, tags, anchors, aliases, keys that are not plain text, a second
// document, nesting deeper than any contract needs.
std::optional<YamlNode> parse_document(std::string_view text, const std::string& origin, Mistakes& mistakes);

}  // namespace moe_diag
