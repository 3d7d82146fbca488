// SPDX-License-Identifier: MIT
#include "core/recording/strict_json.hpp"

#include <fmt/format.h>

#include <limits>
#include <set>
#include <utility>

#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {

using Json = nlohmann::json;

std::string json_text(const Json& value) {
  return shown(value.dump(-1, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace));
}

JsonFields JsonFields::parse(std::string_view text, const std::string& where) {
  constexpr int deepest = 8;
  std::vector<std::set<std::string>> names;
  const auto watch = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > deepest) refuse_recording(fmt::format("{}: nested more than {} deep", where, deepest));
    if (event == Json::parse_event_t::object_start) names.emplace_back();
    if (event == Json::parse_event_t::object_end && !names.empty()) names.pop_back();
    if (event == Json::parse_event_t::key && !names.empty() && !names.back().insert(value.get<std::string>()).second)
      refuse_recording(fmt::format("{}: names {} twice, expected each name once", where,
                                   quoted_bytes(value.get_ref<const std::string&>())));
    return true;
  };
  Json json = Json::parse(text.begin(), text.end(), watch, /*allow_exceptions=*/false);
  if (json.is_discarded())
    refuse_recording(fmt::format("{}: no JSON: it begins with {}", where, quoted_bytes(text.substr(0, 40))));
  return {std::move(json), where};
}

JsonFields::JsonFields(Json object, std::string where) : object_(std::move(object)), where_(std::move(where)) {
  if (!object_.is_object())
    refuse_recording(fmt::format("{}: expected a JSON object, found {}", where_, json_text(object_)));
}

void JsonFields::refuse_others(const std::vector<std::string>& known) const {
  for (const auto& [key, value] : object_.items()) {
    bool is_known = false;
    for (const std::string& name : known) is_known |= name == key;
    if (!is_known) refuse_recording(fmt::format("{}: {}", where_, unknown("key", key, known)));
  }
}

const Json* JsonFields::find(const char* key) const {
  const auto found = object_.find(key);
  return found == object_.end() ? nullptr : &*found;
}

void JsonFields::refuse(const char* key, std::string_view expected) const {
  refuse_recording(fmt::format("{}: {}: expected {}, found {}", where_, key, expected, json_text(*find(key))));
}

std::optional<std::string> JsonFields::text(const char* key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_string()) refuse(key, "text");
  return value->get<std::string>();
}

std::optional<bool> JsonFields::flag(const char* key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_boolean()) refuse(key, "true or false");
  return value->get<bool>();
}

std::optional<int> JsonFields::number(const char* key, int least, int most) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  const std::string expected = most == std::numeric_limits<int>::max()
                                   ? fmt::format("a whole number from {} on", least)
                                   : fmt::format("a whole number, {} to {}", least, most);
  if (!value->is_number_integer() || (value->is_number_unsigned() && value->get<std::uint64_t>() > INT32_MAX))
    refuse(key, expected);
  const auto number = value->get<std::int64_t>();
  if (number < least || number > most) refuse(key, expected);
  return static_cast<int>(number);
}

std::optional<std::vector<std::int32_t>> JsonFields::numbers(const char* key) const {
  const Json* value = find(key);
  if (!value) return std::nullopt;
  if (!value->is_array()) refuse(key, "a list of whole numbers");
  std::vector<std::int32_t> numbers;
  numbers.reserve(value->size());
  for (const Json& one : *value) {
    if (!one.is_number_unsigned() || one.get<std::uint64_t>() > INT32_MAX)
      refuse_recording(fmt::format("{}: {}[{}]: expected a whole number from 0 on, found {}", where_, key,
                                   numbers.size(), json_text(one)));
    numbers.push_back(one.get<std::int32_t>());
  }
  return numbers;
}

std::vector<JsonFields> JsonFields::objects(const char* key) const {
  const Json* value = find(key);
  if (!value) return {};
  if (!value->is_array()) refuse(key, "a list of objects");
  std::vector<JsonFields> objects;
  for (const Json& one : *value) objects.emplace_back(one, fmt::format("{}: {}[{}]", where_, key, objects.size()));
  return objects;
}

}  // namespace moe_diag
