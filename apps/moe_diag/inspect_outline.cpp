// SPDX-License-Identifier: MIT
#include "apps/moe_diag/inspect_outline.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdio>
#include <map>
#include <nlohmann/json.hpp>
#include <vector>

#include "core/api/error.hpp"
#include "core/gguf/ggml_type.hpp"
#include "core/gguf/gguf_file.hpp"
#include "core/gguf/mapped_file.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::size_t most_groups = 200;  // of a file whose tensors have no names that repeat

std::string type_text(std::uint32_t id) {
  if (const BlockInfo* block = find_block_info(id)) return std::string(block->name);
  const std::string_view name = ggml_type_name(id);
  return name.empty() ? fmt::format("type {}", id) : std::string(name);
}

// A name from a file as it may stand in a table.
std::string printable(std::string_view name) {
  const std::string text = quoted_bytes(name);
  return text.substr(1, text.rfind('\'') - 1);
}

bool is_supported(std::uint32_t id) { return find_block_info(id) != nullptr; }

// A number, boolean or text; of anything else, how much it is.
Json value_of(const GgufFile& file, const GgufEntry& entry) {
  switch (entry.type) {
    case GgufType::text: return quoted_bytes(*file.text(entry.key));
    case GgufType::array: return fmt::format("{} values of type {}", entry.count, name_of(entry.element));
    case GgufType::boolean: return *file.boolean(entry.key);
    case GgufType::f32:
    case GgufType::f64: return *file.real(entry.key);
    default: return *file.integer(entry.key);
  }
}

std::string text_of(const Json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

// "blk.*.attn_q.weight" of "blk.7.attn_q.weight": each number between points counts as one.
std::string pattern_of(std::string_view name) {
  std::string pattern;
  while (!name.empty()) {
    const std::string_view part = name.substr(0, name.find('.'));
    const bool is_number =
        !part.empty() && std::all_of(part.begin(), part.end(), [](char c) { return c >= '0' && c <= '9'; });
    if (is_number)
      pattern += '*';
    else
      pattern += part;
    name.remove_prefix(part.size());
    if (!name.empty()) {
      pattern += '.';
      name.remove_prefix(1);
    }
  }
  return pattern;
}

std::vector<std::int64_t> dims_of(const GgufTensor& tensor) {
  return {tensor.dims.begin(), tensor.dims.begin() + tensor.rank};
}

struct Outline {
  MappedFile mapped;
  GgufFile file;

  explicit Outline(const std::string& path)
      : mapped(MappedFile::open(path)), file(GgufFile::outline(mapped.bytes(), path)) {}
};

void add_tensors(const GgufFile& file, std::string& text) {
  struct Group {
    int count = 0;
    std::string shape;
  };
  std::map<std::pair<std::string, std::uint32_t>, Group> groups;
  for (const GgufTensor& tensor : file.tensors()) {
    Group& group = groups[{pattern_of(tensor.name), tensor.type_id}];
    const std::string shape = fmt::format("[{}]", fmt::join(dims_of(tensor), ", "));
    group.shape = group.count++ == 0 || group.shape == shape ? shape : "differs";
  }
  text += fmt::format("\n{:<34} {:<8} {:<20} {:>7}\n", "TENSOR", "TYPE", "SHAPE", "TENSORS");
  std::size_t shown = 0;
  for (const auto& [key, group] : groups) {
    if (++shown > most_groups) break;
    text += fmt::format("{:<34} {:<8} {:<20} {:>7}{}\n", printable(key.first), type_text(key.second), group.shape,
                        group.count, is_supported(key.second) ? "" : "  not supported");
  }
  if (groups.size() > most_groups) text += fmt::format("... {} more\n", groups.size() - most_groups);
}

std::string outline_text(const std::string& path) {
  const Outline outline(path);
  const GgufFile& file = outline.file;
  std::string text = fmt::format("{}\n  computed    no\n  file        GGUF version {}, {} bytes, {} tensors\n", path,
                                 file.version(), outline.mapped.bytes().size(), file.tensors().size());
  for (const GgufEntry& entry : file.metadata())
    if (!entry.key.starts_with("tokenizer."))
      text += fmt::format("  {} = {}\n", printable(entry.key), text_of(value_of(file, entry)));
  add_tensors(file, text);
  return text;
}

std::string outline_json(const std::string& path, const std::string& why) {
  const Outline outline(path);
  const GgufFile& file = outline.file;
  Json metadata = Json::object(), tensors = Json::array();
  for (const GgufEntry& entry : file.metadata()) {
    const Json value = value_of(file, entry);
    metadata[std::string(entry.key)] = entry.type == GgufType::text ? Json(std::string(*file.text(entry.key))) : value;
  }
  for (const GgufTensor& tensor : file.tensors())
    tensors.push_back({{"name", std::string(tensor.name)},
                       {"type", type_text(tensor.type_id)},
                       {"supported", is_supported(tensor.type_id)},
                       {"shape", dims_of(tensor)}});
  const Json document{{"schema", 1},
                      {"source", path},
                      {"computed", false},
                      {"why", why},
                      {"bytes", outline.mapped.bytes().size()},
                      {"metadata", metadata},
                      {"tensors", tensors}};
  return document.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace

void print_outline(const std::string& path, const std::string& why, bool json) {
  try {
    fmt::print("{}", json ? outline_json(path, why) : outline_text(path));
    std::fflush(stdout);
  } catch (const Error&) {
    // Why the file is refused is told by whoever asked.
  }
}

}  // namespace moe_diag
