// SPDX-License-Identifier: MIT
#include "core/contract/reader.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>
#include <set>
#include <utility>

#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::string_view merge_key = "<<";

bool is_digit(char c) { return c >= '0' && c <= '9'; }

bool all_digits(std::string_view s) { return !s.empty() && std::all_of(s.begin(), s.end(), is_digit); }

std::string_view without_sign(std::string_view s) {
  return s.substr(!s.empty() && (s.front() == '-' || s.front() == '+') ? 1 : 0);
}

// Why text that a YAML reader may take for a number is none here; empty when there is nothing special about it.
std::string_view trap(std::string_view text) {
  const std::string digits = lower(without_sign(text));
  if (digits == ".inf" || digits == ".nan" || digits == "inf" || digits == "nan" || digits == "infinity")
    return "only finite numbers are taken";
  if (digits.substr(0, 2) == "0x" || digits.substr(0, 2) == "0o" || digits.substr(0, 2) == "0b")
    return "write it in decimal";
  if (digits.size() > 1 && digits.front() == '0' && is_digit(digits[1]))
    return "some readers take a leading 0 for octal, write it without";
  if (digits.find(',') != std::string::npos) return "the decimal sign is a point, and digits are not grouped";
  if (digits.find('_') != std::string::npos) return "write it without '_'";
  if (text.substr(0, 1) == "+") return "write it without '+'";
  return "";
}

// -?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?
bool is_decimal(std::string_view s) {
  if (!s.empty() && s.front() == '-') s.remove_prefix(1);
  if (const std::size_t e = s.find_first_of("eE"); e != std::string_view::npos) {
    if (!all_digits(without_sign(s.substr(e + 1)))) return false;
    s = s.substr(0, e);
  }
  if (const std::size_t point = s.find('.'); point != std::string_view::npos) {
    if (!all_digits(s.substr(point + 1))) return false;
    s = s.substr(0, point);
  }
  return all_digits(s) && (s.size() == 1 || s.front() != '0');
}

constexpr std::pair<std::string_view, std::uint64_t> byte_units[] = {
    {"", 1},
    {"kB", 1'000},
    {"MB", 1'000'000},
    {"GB", 1'000'000'000},
    {"TB", 1'000'000'000'000},
    {"KiB", std::uint64_t{1} << 10},
    {"MiB", std::uint64_t{1} << 20},
    {"GiB", std::uint64_t{1} << 30},
    {"TiB", std::uint64_t{1} << 40},
};

template <class T>
std::optional<T> from_text(std::string_view text) {
  T value{};
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) return std::nullopt;
  return value;
}

}  // namespace

bool is_name(std::string_view text) {
  const auto fits = [](char c) {
    return is_digit(c) || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '.' || c == '_' || c == '-';
  };
  return std::all_of(text.begin(), text.end(), fits) && text != "." && text != ".." && text != "all" &&
         text.size() <= longest_name;
}

std::string found(const YamlNode& node) {
  switch (node.kind) {
    case YamlNode::Kind::null: return "nothing";
    case YamlNode::Kind::scalar: return fmt::format("{0}{1}{0}", node.quoted ? '"' : '\'', shown(node.text));
    case YamlNode::Kind::list: return node.items.empty() ? "an empty list" : "a list";
    case YamlNode::Kind::map: return "a map";
  }
  return "nothing";
}

void Value::refuse(const std::string& message) const {
  mistakes_->add(*node_, (path_.empty() ? "" : path_ + ": ") + message);
}

std::optional<std::string> Value::text() const {
  if (node_->kind == YamlNode::Kind::scalar && !node_->text.empty()) return node_->text;
  refuse(fmt::format("expected text, found {}", found(*node_)));
  return std::nullopt;
}

std::optional<std::string> Value::name() const {
  auto name = text();
  if (!name) return std::nullopt;
  if (!is_name(*name)) {
    refuse(
        fmt::format("'{}' cannot be a name: names become folders, so use up to {} letters, digits, '.', '_' and '-', "
                    "and not '.', '..' or 'all'",
                    shown(*name), longest_name));
    return std::nullopt;
  }
  return name;
}

std::optional<std::string> Value::choice(std::string_view what, const std::vector<std::string>& allowed) const {
  auto word = text();
  if (!word) return std::nullopt;
  if (std::find(allowed.begin(), allowed.end(), *word) != allowed.end()) return word;
  refuse(unknown(what, *word, allowed));
  return std::nullopt;
}

std::optional<std::string> Value::numeral(std::string_view expected) const {
  if (node_->kind == YamlNode::Kind::scalar && !node_->quoted && is_decimal(node_->text)) return node_->text;
  std::string message = fmt::format("expected {}, found {}", expected, found(*node_));
  if (node_->quoted && is_decimal(node_->text)) message += ": remove the quotes";
  if (node_->kind == YamlNode::Kind::scalar && !node_->quoted && !trap(node_->text).empty())
    message += fmt::format(": {}", trap(node_->text));
  refuse(message);
  return std::nullopt;
}

std::optional<double> Value::number() const {
  const auto text = numeral("a number");
  if (!text) return std::nullopt;
  const auto value = from_text<double>(*text);
  if (!value || !std::isfinite(*value)) {
    refuse(fmt::format("{} is too large or too small for a double", shown(*text)));
    return std::nullopt;
  }
  return value;
}

std::optional<std::int64_t> Value::whole(std::int64_t lowest, std::int64_t highest) const {
  const std::string expected = fmt::format("a whole number from {} to {}", lowest, highest);
  const auto text = numeral(expected);
  if (!text) return std::nullopt;
  const auto value = from_text<std::int64_t>(*text);
  if (value && *value >= lowest && *value <= highest) return value;
  refuse(fmt::format("expected {}, found {}", expected, shown(*text)));
  return std::nullopt;
}

std::optional<std::uint64_t> Value::whole_unsigned() const {
  const std::string expected = fmt::format("a whole number from 0 to {}", std::numeric_limits<std::uint64_t>::max());
  const auto text = numeral(expected);
  if (!text) return std::nullopt;
  const auto value = from_text<std::uint64_t>(*text);
  if (!value) refuse(fmt::format("expected {}, found {}", expected, shown(*text)));
  return value;
}

std::optional<std::uint64_t> Value::bytes() const {
  const std::string text = node_->kind == YamlNode::Kind::scalar ? node_->text : "";
  const std::size_t digits = std::min(text.find_first_not_of("0123456789"), text.size());
  const std::size_t blank = digits < text.size() && text[digits] == ' ' ? 1 : 0;
  const std::string suffix = text.substr(digits + blank);
  const auto number = from_text<std::uint64_t>(text.substr(0, digits));
  for (const auto& [name, unit] : byte_units)
    if (number && text[0] != '0' && suffix == name && (blank == 0 || !suffix.empty()) &&
        *number <= std::numeric_limits<std::uint64_t>::max() / unit)
      return *number * unit;
  refuse(fmt::format("expected a number of bytes such as 1500000, 20GB or 16GiB, found {}", found(*node_)));
  return std::nullopt;
}

std::vector<Value> Value::items() const {
  std::vector<Value> list;
  if (node_->kind != YamlNode::Kind::list || node_->items.empty()) {
    refuse(fmt::format("expected a list with at least one item, found {}", found(*node_)));
    return list;
  }
  for (std::size_t i = 0; i < node_->items.size(); ++i)
    list.emplace_back(node_->items[i], fmt::format("{}.{}", path_, i), *mistakes_);
  return list;
}

std::vector<Value> Value::one_or_more() const {
  if (node_->kind == YamlNode::Kind::scalar) return {*this};
  return items();
}

Map::Map(Value value) : value_(std::move(value)) {
  if (!is_map()) {
    value_.refuse(fmt::format("expected a map of keys and values, found {}", found(value_.node())));
    return;
  }
  std::map<std::string_view, const YamlNode*> seen;
  for (const YamlNode& key : value_.node().keys) {
    const Value at(key, value_.path(), value_.mistakes());
    const auto [first, is_new] = seen.emplace(key.text, &key);
    if (key.text == merge_key)
      at.refuse("merge keys ('<<') are not supported, write the keys out");
    else if (!is_new)
      at.refuse(
          fmt::format("key '{}' is there already, at {}", shown(key.text), value_.mistakes().place(*first->second)));
  }
}

std::string Map::path_of(std::string_view key) const {
  return value_.path().empty() ? shown(key) : fmt::format("{}.{}", value_.path(), shown(key));
}

std::optional<Value> Map::find(std::string_view key) {
  if (std::find(known_.begin(), known_.end(), key) == known_.end()) known_.emplace_back(key);
  if (!is_map()) return std::nullopt;
  for (std::size_t i = 0; i < value_.node().keys.size(); ++i)
    if (value_.node().keys[i].text == key) return Value(value_.node().items[i], path_of(key), value_.mistakes());
  return std::nullopt;
}

std::optional<Value> Map::require(std::string_view key) {
  auto value = find(key);
  if (!value && is_map()) value_.refuse(fmt::format("the key '{}' is missing", key));
  return value;
}

std::vector<Entry> Map::entries() const {
  std::vector<Entry> list;
  std::set<std::string_view> seen{merge_key};
  if (!is_map()) return list;
  for (std::size_t i = 0; i < value_.node().keys.size(); ++i) {
    const YamlNode& key = value_.node().keys[i];
    if (!seen.insert(key.text).second) continue;
    list.push_back({Value(key, value_.path(), value_.mistakes()),
                    Value(value_.node().items[i], path_of(key.text), value_.mistakes())});
  }
  return list;
}

std::vector<Entry> Map::rest() const {
  auto list = entries();
  const auto is_known = [this](const Entry& e) {
    return std::find(known_.begin(), known_.end(), e.name()) != known_.end();
  };
  list.erase(std::remove_if(list.begin(), list.end(), is_known), list.end());
  return list;
}

void Map::finish() const {
  if (!is_map()) return;
  for (const Entry& entry : rest()) entry.key.refuse(unknown("key", entry.name(), known_));
}

}  // namespace moe_diag
