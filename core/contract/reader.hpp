// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/contract/document.hpp"

namespace moe_diag {

// A node, its key path as `--set` takes it, and where its mistakes go. Every reader returns nothing after it has added
// a mistake, so that reading goes on.
class Value {
 public:
  Value(const YamlNode& node, std::string path, Mistakes& mistakes)
      : node_(&node), path_(std::move(path)), mistakes_(&mistakes) {}

  const YamlNode& node() const { return *node_; }
  const std::string& path() const { return path_; }
  Mistakes& mistakes() const { return *mistakes_; }
  std::string place() const { return mistakes_->place(*node_); }
  // Adds "place: path: message".
  void refuse(const std::string& message) const;

  // A scalar that is not empty, as written.
  std::optional<std::string> text() const;
  // Text that is_name().
  std::optional<std::string> name() const;
  // One of `allowed`; `what` is what it is called in the message.
  std::optional<std::string> choice(std::string_view what, const std::vector<std::string>& allowed) const;
  // A finite decimal number, read without regard to the locale.
  std::optional<double> number() const;
  // A whole decimal number in [lowest, highest].
  std::optional<std::int64_t> whole(std::int64_t lowest, std::int64_t highest) const;
  std::optional<std::uint64_t> whole_unsigned() const;
  // 1 byte or more: a whole decimal number, perhaps followed by kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB.
  std::optional<std::uint64_t> bytes() const;
  // The items of a list that is not empty.
  std::vector<Value> items() const;
  // The same, or a single scalar standing for a list of one.
  std::vector<Value> one_or_more() const;

 private:
  std::optional<std::string> numeral(std::string_view expected) const;

  const YamlNode* node_;
  std::string path_;
  Mistakes* mistakes_;
};

// A key of a map and what it leads to; the key's path is the map's.
struct Entry {
  Value key, value;
  const std::string& name() const { return key.node().text; }
};

// The keys of a map. What is asked for is what is known: finish() refuses the rest, so a new key is one line.
class Map {
 public:
  // Adds a mistake, and is empty, when the value is no map. Adds one for each key that stands twice.
  explicit Map(Value value);

  const Value& value() const { return value_; }
  bool is_map() const { return value_.node().kind == YamlNode::Kind::map; }
  // The path of what is inside, once the entry's id is known: "falsifiers.ID" instead of "falsifiers.0".
  void rename(std::string path) { value_ = Value(value_.node(), std::move(path), value_.mistakes()); }

  std::optional<Value> find(std::string_view key);
  // Adds a mistake when the key is missing.
  std::optional<Value> require(std::string_view key);
  // All keys with their values, in the order of the file; repeated ones once.
  std::vector<Entry> entries() const;
  // The entries nobody asked for.
  std::vector<Entry> rest() const;
  // Refuses them.
  void finish() const;

 private:
  std::string path_of(std::string_view key) const;

  Value value_;
  std::vector<std::string> known_;
};

// Text fit for a folder's name: letters, digits, '.', '_' and '-', not "." or "..", not "all".
inline constexpr std::size_t longest_name = 100;
bool is_name(std::string_view text);

// What a node is, for messages: "'abc'", "a list", "nothing".
std::string found(const YamlNode& node);

}  // namespace moe_diag
