// SPDX-License-Identifier: MIT
#pragma once

#include <charconv>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/error.hpp"

namespace moe_diag {

// The keys a contract gives to one lane or sink. Each read is remembered: a key that nobody read is an error.
// Values are the YAML scalars as written; numbers are read without regard to the locale.
class Options {
 public:
  struct Entry {
    std::string key, value;
    std::string where;  // "file:line:column", for messages
    mutable bool read = false;
  };

  Options() = default;
  // `owner` names whose options these are in messages, e.g. "sink 'dump'"; `where` is where it stands.
  Options(std::string owner, std::string where) : owner_(std::move(owner)), where_(std::move(where)) {}

  void add(std::string key, std::string value, std::string where) {
    entries_.push_back({std::move(key), std::move(value), std::move(where)});
  }

  // A value for when the contract gives none; nobody has to read it.
  void add_default(std::string key, std::string value) {
    for (const Entry& e : entries_)
      if (e.key == key) return;
    entries_.push_back({std::move(key), std::move(value), where_, true});
  }

  bool has(std::string_view key) const { return find(key) != nullptr; }

  // True when somebody has looked for the key, whether or not it is there: how a plugin shows that it knows it.
  bool asked(std::string_view key) const {
    for (const std::string& known : asked_)
      if (known == key) return true;
    return false;
  }

  std::string_view text(std::string_view key, std::string_view fallback) const {
    const Entry* e = find(key);
    return e ? std::string_view(e->value) : fallback;
  }
  std::string_view text(std::string_view key) const { return require(key).value; }

  std::int64_t integer(std::string_view key, std::int64_t fallback, std::int64_t lowest, std::int64_t highest) const {
    const Entry* e = find(key);
    if (!e) return fallback;
    std::int64_t v = 0;
    const char* end = e->value.data() + e->value.size();
    const auto [stop, error] = std::from_chars(e->value.data(), end, v);
    const std::string_view digits = std::string_view(e->value).substr(e->value.starts_with('-') ? 1 : 0);
    const bool octal = digits.size() > 1 && digits.front() == '0';  // 010 is 8 or 10, depending on who reads it
    if (octal || error != std::errc() || stop != end || v < lowest || v > highest)
      refuse(key, "expected a whole number from " + std::to_string(lowest) + " to " + std::to_string(highest));
    return v;
  }

  bool flag(std::string_view key, bool fallback) const {
    const Entry* e = find(key);
    if (!e) return fallback;
    if (e->value != "true" && e->value != "false") refuse(key, "expected true or false");
    return e->value == "true";
  }

  std::string_view choice(std::string_view key, std::string_view fallback,
                          std::initializer_list<std::string_view> allowed) const {
    const std::string_view v = text(key, fallback);
    std::string list;
    for (std::string_view a : allowed) {
      if (v == a) return v;
      list.append(list.empty() ? "" : ", ").append(a);
    }
    refuse(key, "expected one of " + list);
  }

  // Ends the run with the place of `key`, what was found and `expected`.
  [[noreturn]] void refuse(std::string_view key, const std::string& expected) const {
    const Entry* e = find(key);
    throw Error(ErrorKind::usage, (e ? e->where : where_) + ": " + owner_ + ": " + std::string(key) + ": " +
                                      (e ? "found '" + e->value + "', " : "missing, ") + expected);
  }

  // Keys that were never asked for, in the order of the contract.
  std::vector<const Entry*> unread() const {
    std::vector<const Entry*> list;
    for (const Entry& e : entries_)
      if (!e.read) list.push_back(&e);
    return list;
  }

  const std::string& owner() const { return owner_; }
  const std::string& where() const { return where_; }
  const std::vector<Entry>& entries() const { return entries_; }

 private:
  const Entry* find(std::string_view key) const {
    if (!asked(key)) asked_.emplace_back(key);
    for (const Entry& e : entries_)
      if (e.key == key) {
        e.read = true;
        return &e;
      }
    return nullptr;
  }
  const Entry& require(std::string_view key) const {
    const Entry* e = find(key);
    if (!e) refuse(key, "this key is required");
    return *e;
  }

  std::string owner_, where_;
  std::vector<Entry> entries_;
  mutable std::vector<std::string> asked_;
};

}  // namespace moe_diag
