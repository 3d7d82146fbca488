// SPDX-License-Identifier: MIT
#pragma once

// The keys a plugin takes from a contract, each a constant: what is read with it is what `moe-diag plugins -v` lists.

#include <array>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace moe_diag {

enum class OptionType : std::uint32_t { text, path, integer, flag, choice };

// What is read when the contract does not have the key.
enum class OptionAbsent : std::uint32_t {
  fallback,  // `value`, written as a contract would
  computed,  // the plugin asks has() and finds out by itself; `value` says how, in words
  required,  // nothing: the contract is refused; `value` is an example
};

// One key, plain data. Append-only, as the manifest that holds it.
struct OptionInfo {
  const char* name = "";
  OptionType type = OptionType::text;
  const char* unit = "";  // empty: none
  OptionAbsent absent = OptionAbsent::fallback;
  const char* value = "";
  const char* text = "";                 // what it is for, one line
  const char* choices = "";              // choice: the words allowed, a blank between
  std::int64_t lowest = 0, highest = 0;  // integer: both allowed
};

// What an option is when the contract does not have it: a fallback's text, or one of these.
struct Required {
  const char* example;
};
struct Computed {
  const char* how;
};
struct WhenAbsent {
  // Implicit, so that each can be written where an option is declared. NOLINTBEGIN(google-explicit-constructor)
  constexpr WhenAbsent(const char* fallback) : value(fallback) {}
  constexpr WhenAbsent(Required required) : absent(OptionAbsent::required), value(required.example) {}
  constexpr WhenAbsent(Computed computed) : absent(OptionAbsent::computed), value(computed.how) {}
  // NOLINTEND(google-explicit-constructor)

  OptionAbsent absent = OptionAbsent::fallback;
  const char* value;
};

// Nothing when it is not a whole number, or not one of 64 bits. 010 is none: it is 8 or 10, depending on who reads it.
constexpr std::optional<std::int64_t> whole_number(std::string_view text) {
  const bool negative = text.starts_with('-');
  if (negative) text.remove_prefix(1);
  if (text.empty() || (text.size() > 1 && text.front() == '0')) return std::nullopt;
  constexpr std::int64_t lowest = std::numeric_limits<std::int64_t>::min();
  std::int64_t number = 0;  // negated: there is one more negative number
  for (const char c : text) {
    if (c < '0' || c > '9' || number < (lowest + (c - '0')) / 10) return std::nullopt;
    number = number * 10 - (c - '0');
  }
  if (!negative && number == lowest) return std::nullopt;
  return negative ? number : -number;
}

namespace option {

// Whether `list`, separated by `separator`, has `item`.
constexpr bool has_item(std::string_view list, char separator, std::string_view item) {
  while (true) {
    const std::size_t end = list.find(separator);
    if (list.substr(0, end) == item) return true;
    if (end == std::string_view::npos) return false;
    list.remove_prefix(end + 1);
  }
}

}  // namespace option

// Whether an option can have this value.
constexpr bool accepts(const OptionInfo& o, std::string_view value) {
  switch (o.type) {
    case OptionType::text: return true;
    case OptionType::path: return !value.empty() && (value.front() == '/' || !option::has_item(value, '/', ".."));
    case OptionType::integer: {
      const auto number = whole_number(value);
      return number && *number >= o.lowest && *number <= o.highest;
    }
    case OptionType::flag: return value == "true" || value == "false";
    case OptionType::choice: return !value.empty() && option::has_item(o.choices, ' ', value);
  }
  return false;
}

// What an option can have, as a refusal and a listing say it: "a whole number from 1 to 256".
inline std::string accepted_by(const OptionInfo& o) {
  switch (o.type) {
    case OptionType::text: return "text";
    case OptionType::path: return "a path below --out; write an absolute one to leave it";
    case OptionType::integer:
      return "a whole number from " + std::to_string(o.lowest) + " to " + std::to_string(o.highest);
    case OptionType::flag: return "true or false";
    case OptionType::choice: {
      std::string list = "one of ";
      for (const char* c = o.choices; *c; ++c) list += *c == ' ' ? std::string(", ") : std::string(1, *c);
      return list;
    }
  }
  return "";
}

namespace option {

// A constant whose fallback or example is no value of its own does not compile.
constexpr OptionInfo checked(const OptionInfo& o) {
  if (o.absent != OptionAbsent::computed && !accepts(o, o.value))
    throw std::invalid_argument("an option's fallback or example is not one of its values");
  return o;
}

}  // namespace option

// The five kinds of option, each with what options.read() gives for it.

struct TextOption : OptionInfo {  // std::string_view, as it is written
  constexpr TextOption(const char* key, WhenAbsent none, const char* purpose)
      : OptionInfo(option::checked({key, OptionType::text, "", none.absent, none.value, purpose})) {}
};

// std::string_view: a file or folder that a sink writes. A relative one lies below --out and never leaves it.
struct PathOption : OptionInfo {
  constexpr PathOption(const char* key, WhenAbsent none, const char* purpose)
      : OptionInfo(option::checked({key, OptionType::path, "", none.absent, none.value, purpose})) {}
};

struct IntegerOption : OptionInfo {  // std::int64_t; both bounds are allowed
  constexpr IntegerOption(const char* key, const char* measured_in, WhenAbsent none, std::int64_t from, std::int64_t to,
                          const char* purpose)
      : OptionInfo(
            option::checked({key, OptionType::integer, measured_in, none.absent, none.value, purpose, "", from, to})) {}
};

struct FlagOption : OptionInfo {  // bool
  constexpr FlagOption(const char* key, WhenAbsent none, const char* purpose)
      : OptionInfo(option::checked({key, OptionType::flag, "", none.absent, none.value, purpose})) {}
};

struct ChoiceOption : OptionInfo {  // std::string_view: one of the words, which a blank separates
  constexpr ChoiceOption(const char* key, const char* words, WhenAbsent none, const char* purpose)
      : OptionInfo(option::checked({key, OptionType::choice, "", none.absent, none.value, purpose, words})) {}
};

// For the manifest.
template <class... Option>
constexpr auto option_table(const Option&... options) {
  if constexpr (sizeof...(options) == 0)
    return std::array<OptionInfo, 0>();
  else
    return std::array{static_cast<const OptionInfo&>(options)...};
}

}  // namespace moe_diag
