// SPDX-License-Identifier: MIT
#include "core/contract/dump_map.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "core/api/error.hpp"
#include "core/contract/document.hpp"
#include "core/contract/reader.hpp"
#include "core/file/bounded_file.hpp"
#include "core/ops/numerics.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t largest_file = 1 << 20;
constexpr std::int64_t most = std::numeric_limits<std::int32_t>::max();

std::optional<MapPattern> read_pattern(const std::optional<Value>& value) {
  if (!value) return std::nullopt;
  const auto text = value->text();
  return text ? std::optional(MapPattern{*text, value->node().where}) : std::nullopt;
}

bool read_flag(Map& map, std::string_view key) {
  const auto value = map.find(key);
  return value && value->choice("answer", {"true", "false"}).value_or("") == "true";
}

// "token", "hidden[tp]", "hidden[tp:sum]": names of values are free, and help whoever reads the map.
std::optional<MapAxis> axis_of(std::string_view word) {
  MapAxis axis;
  const std::size_t bracket = word.find('[');
  if (bracket != std::string_view::npos) {
    const std::string_view ranks = word.substr(bracket);
    if (ranks == "[tp]" || ranks == "[ep]")
      axis.ranks = MapAxis::Ranks::cut;
    else if (ranks == "[tp:sum]" || ranks == "[ep:sum]")
      axis.ranks = MapAxis::Ranks::sum;
    else
      return std::nullopt;
    word = word.substr(0, bracket);
  }
  constexpr std::pair<std::string_view, MapAxis::Kind> kinds[] = {{"token", MapAxis::Kind::token},
                                                                  {"layer", MapAxis::Kind::layer},
                                                                  {"batch", MapAxis::Kind::batch},
                                                                  {"qkv", MapAxis::Kind::qkv}};
  for (const auto& [name, kind] : kinds)
    if (word == name) axis.kind = kind;
  const bool has_ranks = axis.ranks != MapAxis::Ranks::none;
  const bool holds_values = axis.kind == MapAxis::Kind::values || axis.kind == MapAxis::Kind::qkv;
  return word.empty() || (has_ranks && !holds_values) ? std::nullopt : std::optional(axis);
}

std::optional<std::vector<MapAxis>> read_axes(const Value& value) {
  const auto text = value.text();
  if (!text) return std::nullopt;
  std::vector<MapAxis> axes;
  int tokens = 0;
  for (std::size_t begin = 0; begin < text->size();) {
    const std::size_t end = std::min(text->find(' ', begin), text->size());
    const std::string word = text->substr(begin, end - begin);
    begin = end + 1;
    if (word.empty()) continue;
    const auto axis = axis_of(word);
    if (!axis)
      value.refuse(
          fmt::format("'{}': expected token, layer, batch, or a name of values, which [tp] or [ep] may follow "
                      "where ranks have a part of them, and [tp:sum] or [ep:sum] where they have partial sums",
                      shown(word)));
    if (!axis) return std::nullopt;
    tokens += axis->kind == MapAxis::Kind::token;
    axes.push_back(*axis);
  }
  if (tokens != 1) value.refuse(fmt::format("has token {} times, expected once", tokens));
  return axes;
}

MapColumns read_columns(const Value& value) {
  using Part = MapColumns::Part;
  if (value.node().kind == YamlNode::Kind::map) {
    Map map(value);
    const auto first = map.require("first"), count = map.require("count");
    map.finish();
    return {Part::range, first ? first->whole(0, most).value_or(0) : 0, count ? count->whole(1, most).value_or(1) : 1};
  }
  const std::vector<std::string> words{"first_half", "second_half", "even", "odd"};
  constexpr Part parts[] = {Part::first_half, Part::second_half, Part::even, Part::odd};
  const auto word = value.choice("columns", words);
  if (!word) return {};
  return {parts[std::find(words.begin(), words.end(), *word) - words.begin()], 0, 0};
}

// A scalar stands for the map {from: SCALAR}.
StageMap read_stage(const Entry& entry) {
  StageMap stage;
  stage.stage = entry.name();
  stage.where = entry.key.node().where;
  if (entry.value.node().kind == YamlNode::Kind::scalar) {
    if (auto pattern = read_pattern(entry.value)) stage.from.push_back(std::move(*pattern));
    return stage;
  }
  Map map(entry.value);
  if (!map.is_map()) return stage;
  if (const auto from = map.require("from"))
    for (const Value& one : from->one_or_more())
      if (auto pattern = read_pattern(one)) stage.from.push_back(std::move(*pattern));
  if (const auto join = map.find("join"))
    stage.is_sum = join->choice("join", {"side_by_side", "sum"}).value_or("") == "sum";
  if (const auto axes = map.find("axes")) stage.axes = read_axes(*axes);
  if (const auto columns = map.find("columns")) stage.columns = read_columns(*columns);
  stage.order = read_pattern(map.find("order"));
  if (const auto n = map.find("n")) stage.occurrence = static_cast<int>(n->whole(-most, most).value_or(0));
  if (const auto rows = map.find("rows"))
    stage.is_last_rows = rows->choice("rows", {"all", "last"}).value_or("") == "last";
  stage.is_optional = read_flag(map, "optional");
  if (const auto offset = map.find("layer_offset"))
    stage.layer_offset = static_cast<int>(offset->whole(-most, most).value_or(0));
  if (const auto layers = map.find("layers"))
    for (const Value& layer : layers->items())
      stage.layers.push_back(static_cast<int>(layer.whole(0, most).value_or(0)));
  if (const auto at = map.find("at")) stage.at = static_cast<int>(at->whole(0, most).value_or(0));
  if (const auto type = map.find("type")) {
    const std::vector<std::string> types{"f64", "f32", "f16", "bf16", "i16", "i32", "i64"};
    stage.type = type->choice("type", types).value_or("");
  }
  if (const auto skip = map.find("skip")) {
    stage.skip = static_cast<std::uint64_t>(skip->whole(0, most).value_or(0));
    if (!map.find("type")) skip->refuse("is of files without a header, whose values have a 'type'");
  }
  map.finish();
  return stage;
}

DumpMap read_map(const YamlNode& document, Mistakes& mistakes) {
  DumpMap read;
  Map map(Value(document, "", mistakes));
  if (!map.is_map()) return read;
  if (const auto version = map.require("map")) version->whole(1, 1);
  const auto text = [&](std::string_view key) {
    const auto value = map.find(key);
    return value ? value->text().value_or("") : "";
  };
  read.engine = text("engine");
  const auto word = [&](std::string_view key, const std::vector<std::string>& known) {
    const auto value = map.find(key);
    return value ? value->choice(key, known).value_or("") : "";
  };
  std::vector<std::string> numerics{"fp8"}, stored, caches;
  for (const NamedNumerics& row : all_named_numerics()) numerics.emplace_back(row.name);
  for (const StoragePreset& row : all_storage_presets()) stored.emplace_back(row.name);
  for (const CacheType& row : all_cache_types()) caches.emplace_back(row.name);
  read.numerics = word("numerics", numerics);
  read.stored = word("stored", stored);
  read.kv_cache = word("kv_cache", caches);
  read.fused_shared_expert = read_flag(map, "fused_shared_expert");
  read.calls = read_pattern(map.find("calls"));
  read.tokens = read_pattern(map.find("tokens"));
  read.positions = read_pattern(map.find("positions"));
  read.lengths = read_pattern(map.find("lengths"));
  for (const char* key : {"tokens", "positions", "lengths"})
    if (const auto value = map.find(key); value && read.calls)
      value->refuse("calls says it already: keep one of the two");
  if (const auto stages = map.require("stages"))
    for (const Entry& entry : Map(*stages).entries()) read.stages.push_back(read_stage(entry));
  map.finish();
  return read;
}

}  // namespace

std::string DumpMap::at(const Where& where) const { return fmt::format("{}:{}:{}", file, where.line, where.column); }

DumpMap DumpMap::parse(std::string_view text, const std::string& file) {
  Mistakes mistakes(file);
  DumpMap map;
  if (const auto document = parse_document(text, "", mistakes)) map = read_map(*document, mistakes);
  mistakes.raise();
  map.file = file;
  return map;
}

DumpMap DumpMap::read(const std::string& path) {
  std::string text;
  try {
    text = read_bounded(path, largest_file);
  } catch (const Error& e) {
    throw Error(ErrorKind::usage, fmt::format("{}: {}", path, e.what()));
  }
  return parse(text, path);
}

}  // namespace moe_diag
