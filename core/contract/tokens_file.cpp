// SPDX-License-Identifier: MIT
#include "core/contract/tokens_file.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstring>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <string_view>
#include <utility>

#include "core/api/error.hpp"
#include "core/file/bounded_file.hpp"
#include "core/file/npy_file.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t largest_file = std::size_t{16} << 20;
constexpr std::int64_t largest_token = std::numeric_limits<std::int32_t>::max();
constexpr int deepest = 16;  // nesting of what a line may hold beside the tokens

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::usage, message); }

std::int32_t checked(std::int64_t token, std::size_t at) {
  if (token < 0 || token > largest_token)
    refuse(fmt::format("token {} at position {}: expected 0 to {}", token, at, largest_token));
  return static_cast<std::int32_t>(token);
}

template <class T>
std::vector<std::int32_t> tokens_of(const NpyArray& array) {
  std::vector<std::int32_t> tokens;
  tokens.reserve(static_cast<std::size_t>(array.count()));
  for (std::size_t i = 0; i < static_cast<std::size_t>(array.count()); ++i) {
    T token;
    std::memcpy(&token, array.data.data() + i * sizeof(T), sizeof token);
    tokens.push_back(checked(token, i));
  }
  return tokens;
}

std::vector<TokenSequence> read_npy(const std::string& bytes) {
  const NpyArray array = parse_npy(bytes);
  if (array.shape.size() != 1)
    refuse(fmt::format("its shape is ({}), expected an array of one dimension", fmt::join(array.shape, ", ")));
  if (array.type == "<i4") return {{"", tokens_of<std::int32_t>(array)}};
  if (array.type == "<i8") return {{"", tokens_of<std::int64_t>(array)}};
  refuse(fmt::format("its type is '{}', expected '<i4' or '<i8': save it with .astype(numpy.int32)", array.type));
}

// The value a line holds; a key of the outer object stands once.
nlohmann::json parse_line(std::string_view line) {
  std::vector<std::string> keys;
  const auto watch = [&](int depth, nlohmann::json::parse_event_t event, nlohmann::json& parsed) {
    if (depth > deepest) refuse(fmt::format("nested more than {} deep", deepest));
    if (event != nlohmann::json::parse_event_t::key || depth != 1) return true;
    for (const std::string& key : keys)
      if (parsed == key) refuse(fmt::format("the key \"{}\" stands there twice", shown(key)));
    keys.push_back(parsed.get<std::string>());
    return true;
  };
  try {
    return nlohmann::json::parse(line, watch);
  } catch (const nlohmann::json::parse_error& e) {
    refuse(fmt::format("not JSON: something is wrong at character {}", e.byte));
  } catch (const nlohmann::json::exception&) {
    refuse("not JSON: a number is too large");
  }
}

std::string id_of(const nlohmann::json& id) {
  if (id.is_string()) return id.get<std::string>();
  if (id.is_number_unsigned()) return std::to_string(id.get<std::uint64_t>());
  refuse("\"id\": expected text or a whole number");
}

TokenSequence sequence_of(const nlohmann::json& line) {
  TokenSequence sequence;
  const nlohmann::json* tokens = &line;
  if (line.is_object()) {
    const auto id = line.find("id"), list = line.find("tokens");
    if (id != line.end()) sequence.id = id_of(*id);
    if (list == line.end()) refuse("the key \"tokens\" is missing");
    tokens = &*list;
  }
  if (!tokens->is_array())
    refuse(fmt::format("expected a list of token ids{}, found {}",
                       line.is_object() ? " as \"tokens\"" : " or an object with \"tokens\"", tokens->type_name()));
  for (const nlohmann::json& token : *tokens) {
    const std::size_t at = sequence.tokens.size();
    const bool fits = token.is_number_integer() &&
                      (!token.is_number_unsigned() || token.get<std::uint64_t>() <= std::uint64_t{largest_token});
    if (!fits) refuse(fmt::format("position {}: expected a whole number from 0 to {}", at, largest_token));
    sequence.tokens.push_back(checked(token.get<std::int64_t>(), at));
  }
  return sequence;
}

std::vector<TokenSequence> read_jsonl(const std::string& bytes) {
  std::vector<TokenSequence> sequences;
  std::string_view rest = bytes;
  for (std::size_t number = 1; !rest.empty(); ++number) {
    const std::size_t end = rest.find('\n');
    const std::string_view line = rest.substr(0, end);
    rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    try {
      sequences.push_back(sequence_of(parse_line(line)));
      if (sequences.back().tokens.empty()) refuse("there are no tokens in it");
    } catch (const Error& e) {
      refuse(fmt::format("line {}: {}", number, e.what()));
    }
  }
  if (sequences.empty()) refuse("there are no tokens in it");
  return sequences;
}

}  // namespace

std::vector<TokenSequence> read_tokens_file(const std::string& path) {
  const std::string extension = lower(std::filesystem::path(path).extension().string());
  if (extension != ".npy" && extension != ".jsonl") refuse("expected a file whose name ends in .npy or .jsonl");
  const std::string bytes = read_bounded(path, largest_file);
  if (extension == ".jsonl") return read_jsonl(bytes);
  auto sequences = read_npy(bytes);
  if (sequences.front().tokens.empty()) refuse("there are no tokens in it");
  return sequences;
}

}  // namespace moe_diag
