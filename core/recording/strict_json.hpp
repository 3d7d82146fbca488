// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/error.hpp"

namespace moe_diag {

// Errors of a recording: all of them are the user's to mend.
[[noreturn]] inline void refuse_recording(const std::string& message) { throw Error(ErrorKind::usage, message); }

// An object of a user's JSON. Each mistake throws Error(usage) that begins with `where`.
class JsonFields {
 public:
  // Refuses what is no JSON object, a name that comes twice in any object, and deep nesting.
  static JsonFields parse(std::string_view text, const std::string& where);
  JsonFields(nlohmann::json object, std::string where);

  const std::string& where() const { return where_; }
  const nlohmann::json& json() const { return object_; }
  bool has(const char* key) const { return object_.contains(key); }

  // Refuses other names, with the nearest one.
  void refuse_others(const std::vector<std::string>& known) const;
  std::optional<std::string> text(const char* key) const;
  std::optional<bool> flag(const char* key) const;
  std::optional<int> number(const char* key, int least, int most) const;
  std::optional<std::vector<std::int32_t>> numbers(const char* key) const;  // each 0 to the largest int32
  std::vector<JsonFields> objects(const char* key) const;                   // none: no such key

 private:
  const nlohmann::json* find(const char* key) const;
  [[noreturn]] void refuse(const char* key, std::string_view expected) const;

  nlohmann::json object_;
  std::string where_;
};

// A value as it stands in the file, cut when it is long.
std::string json_text(const nlohmann::json& value);

}  // namespace moe_diag
