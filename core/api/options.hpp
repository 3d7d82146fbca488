// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/error.hpp"
#include "core/api/option.hpp"

namespace moe_diag {

// The keys a contract gives to one lane or sink. Each read is remembered: a key that nobody read is an error, and so is
// reading one that the plugin does not list. Values are the YAML scalars as written; no locale has a say.
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
    if (entry(key)) return;
    entries_.push_back({std::move(key), std::move(value), where_, true});
  }

  // What the contract says, null when it does not have the key; counts as no read.
  const Entry* entry(std::string_view key) const {
    for (const Entry& e : entries_)
      if (e.key == key) return &e;
    return nullptr;
  }

  // Whether the contract has the key.
  bool has(const OptionInfo& option) const { return find(option.name) != nullptr; }

  // The value of the contract, or the option's fallback. Refused are a value that the option cannot have, and no value
  // where there is no fallback.
  std::string_view read(const TextOption& option) const { return value_of(option); }
  std::string_view read(const PathOption& option) const { return value_of(option); }
  std::int64_t read(const IntegerOption& option) const { return *whole_number(value_of(option)); }
  bool read(const FlagOption& option) const { return value_of(option) == "true"; }
  std::string_view read(const ChoiceOption& option) const { return value_of(option); }

  // Ends the run with the place of the key, what was found and `expected`.
  [[noreturn]] void refuse(const OptionInfo& option, const std::string& expected) const {
    const Entry* e = find(option.name);
    throw Error(ErrorKind::usage, (e ? e->where : where_) + ": " + owner_ + ": " + option.name + ": " +
                                      (e ? "found '" + e->value + "', " : "missing, ") + expected);
  }

  // Every key that somebody has looked for, whether or not it is there: what a plugin knows.
  const std::vector<std::string>& asked() const { return asked_; }
  bool asked(std::string_view key) const {
    for (const std::string& known : asked_)
      if (known == key) return true;
    return false;
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
    const Entry* e = entry(key);
    if (e) e->read = true;
    return e;
  }
  std::string_view value_of(const OptionInfo& option) const {
    const Entry* e = find(option.name);
    if (!e && option.absent == OptionAbsent::fallback) return option.value;
    if (!e) refuse(option, "this key is required");
    if (!accepts(option, e->value)) refuse(option, "expected " + accepted_by(option));
    return e->value;
  }

  std::string owner_, where_;
  std::vector<Entry> entries_;
  mutable std::vector<std::string> asked_;
};

}  // namespace moe_diag
