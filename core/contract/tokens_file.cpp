// SPDX-License-Identifier: MIT
#include "core/contract/tokens_file.hpp"

#include <fmt/format.h>

#include <bit>
#include <charconv>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <string_view>
#include <system_error>
#include <utility>

#include "core/api/error.hpp"
#include "core/contract/nearest.hpp"

namespace moe_diag {
namespace {

static_assert(std::endian::native == std::endian::little, "arrays are read as they stand in the file");

constexpr std::size_t largest_file = std::size_t{16} << 20;
constexpr std::int64_t largest_token = std::numeric_limits<std::int32_t>::max();
constexpr int deepest = 16;  // nesting of what a line may hold beside the tokens

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::usage, message); }

std::string read_bounded(const std::string& path) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) refuse("it is a folder");
  if (!std::filesystem::exists(path, error)) refuse("there is no such file");
  if (!std::filesystem::is_regular_file(path, error)) refuse("it is no regular file");  // a pipe could block for ever
  std::ifstream in(path, std::ios::binary);
  if (!in) refuse("no permission");
  std::string bytes(largest_file + 1, '\0');
  in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  if (in.bad()) refuse("reading failed");
  bytes.resize(static_cast<std::size_t>(in.gcount()));
  if (bytes.size() > largest_file) refuse(fmt::format("larger than {} MiB", largest_file >> 20));
  return bytes;
}

std::int32_t checked(std::int64_t token, std::size_t at) {
  if (token < 0 || token > largest_token)
    refuse(fmt::format("token {} at position {}: expected 0 to {}", token, at, largest_token));
  return static_cast<std::int32_t>(token);
}

// The header of an .npy file: a Python dictionary of three known keys, as numpy writes it.
// Source: numpy.lib.format, versions 1.0 to 3.0.
class NpyHeader {
 public:
  explicit NpyHeader(std::string_view text) : text_(text) {}

  std::string_view descr() {
    std::string_view rest = value("descr");
    const std::size_t end = rest.empty() ? std::string_view::npos : rest.find(rest.front(), 1);
    if (end == std::string_view::npos || (rest.front() != '\'' && rest.front() != '"')) malformed("descr");
    return rest.substr(1, end - 1);
  }
  bool fortran_order() {
    const std::string_view rest = value("fortran_order");
    if (rest.starts_with("True")) return true;
    if (!rest.starts_with("False")) malformed("fortran_order");
    return false;
  }
  // "5," between the brackets of the shape
  std::string_view shape() {
    const std::string_view rest = value("shape");
    const std::size_t end = rest.find(')');
    if (!rest.starts_with('(') || end == std::string_view::npos) malformed("shape");
    return rest.substr(1, end - 1);
  }

 private:
  [[noreturn]] static void malformed(std::string_view key) {
    refuse(fmt::format("its header has no {} as numpy writes it", key));
  }
  std::string_view value(std::string_view key) const {
    for (const char quote : {'\'', '"'}) {
      const std::string name = fmt::format("{0}{1}{0}:", quote, key);
      const std::size_t at = text_.find(name);
      if (at == std::string_view::npos) continue;
      std::string_view rest = text_.substr(at + name.size());
      const std::size_t start = rest.find_first_not_of(' ');
      return start == std::string_view::npos ? std::string_view() : rest.substr(start);
    }
    malformed(key);
  }

  std::string_view text_;
};

std::size_t elements_of(std::string_view shape) {
  std::size_t count = 0;
  const char* end = shape.data() + shape.size();
  const auto [stop, error] = std::from_chars(shape.data(), end, count);
  const std::string_view after(stop, static_cast<std::size_t>(end - stop));
  if (error != std::errc() || after != ",")
    refuse(fmt::format("its shape is ({}), expected an array of one dimension", shown(shape)));
  return count;
}

template <class T>
std::vector<std::int32_t> tokens_of(std::string_view data, std::size_t count) {
  if (data.size() % sizeof(T) != 0 || count != data.size() / sizeof(T))
    refuse(fmt::format("its header announces {} elements of {} bytes, {} bytes follow", count, sizeof(T), data.size()));
  std::vector<std::int32_t> tokens;
  tokens.reserve(count);
  for (std::size_t i = 0; i < count; ++i) {
    T token;
    std::memcpy(&token, data.data() + i * sizeof(T), sizeof token);
    tokens.push_back(checked(token, i));
  }
  return tokens;
}

std::vector<TokenSequence> read_npy(const std::string& bytes) {
  constexpr std::string_view magic = "\x93NUMPY";
  const std::string_view file = bytes;
  if (!file.starts_with(magic) || file.size() < 12) refuse("not an .npy file");
  const auto byte = [&](std::size_t i) { return static_cast<std::size_t>(static_cast<unsigned char>(file[i])); };
  const std::size_t version = byte(6);
  if (version < 1 || version > 3) refuse(fmt::format("version {} of the .npy format, supported are 1 to 3", version));
  const std::size_t start = version == 1 ? 10 : 12;
  const std::size_t length = byte(8) | byte(9) << 8 | (version == 1 ? 0 : byte(10) << 16 | byte(11) << 24);
  if (length > file.size() - start) refuse("it ends within its header");
  NpyHeader header(file.substr(start, length));
  const std::string_view data = file.substr(start + length), type = header.descr();
  if (header.fortran_order()) refuse("it is in Fortran order, expected C order");
  const std::size_t count = elements_of(header.shape());
  if (type == "<i4") return {{"", tokens_of<std::int32_t>(data, count)}};
  if (type == "<i8") return {{"", tokens_of<std::int64_t>(data, count)}};
  refuse(fmt::format("its type is '{}', expected '<i4' or '<i8': save it with .astype(numpy.int32)", shown(type)));
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
  const std::string bytes = read_bounded(path);
  if (extension == ".jsonl") return read_jsonl(bytes);
  auto sequences = read_npy(bytes);
  if (sequences.front().tokens.empty()) refuse("there are no tokens in it");
  return sequences;
}

}  // namespace moe_diag
