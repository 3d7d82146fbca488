// SPDX-License-Identifier: MIT
#include "core/recording/map_calls.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <optional>
#include <span>
#include <utility>

#include "core/recording/strict_json.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::json;
using Numbers = std::vector<std::int64_t>;

// Arrays of one number for each row. One that is of several calls is used up by one after the other.
class RowNumbers {
 public:
  RowNumbers(MapFiles& files, const DumpMap& map, const std::optional<MapPattern>& pattern, std::string what)
      : what_(std::move(what)) {
    if (!pattern) return;
    const std::string where = map.at(pattern->where);
    for (const MapHit& hit : files.find(pattern->text, where)) {
      if (!is_whole(hit.array->element))
        refuse_recording(fmt::format("{}: has {}, expected {} as whole numbers ({})", hit.array->where(),
                                     name_of(hit.array->element), what_, where));
      const auto count = std::ssize(hit.array->data) / static_cast<std::int64_t>(size_of(hit.array->element));
      Numbers numbers;
      for (std::int64_t i = 0; i < count; ++i)
        numbers.push_back(whole_at(hit.array->element, hit.array->data.data(), i));
      arrays_.push_back({MapKey::of(hit), hit.array->where(), std::move(numbers), 0});
    }
    if (arrays_.empty())
      refuse_recording(fmt::format("{}: {}: nothing in {} is called '{}'; there is {}", where, what_, files.folder(),
                                   shown(pattern->text), files.some_names()));
  }

  bool is_said() const { return !arrays_.empty(); }

  std::vector<MapRowCount> counts() const {
    std::vector<MapRowCount> counts;
    for (const Array& array : arrays_) counts.push_back({array.key, std::ssize(array.numbers), array.where});
    return counts;
  }

  // All numbers of the call's own array.
  Numbers all(const MapKey& key) { return take(key, {key, -1, ""}); }

  // One for each row of `of`.
  Numbers take(const MapKey& key, const MapRowCount& of) {
    const std::int64_t rows = of.rows;
    for (Array& array : arrays_) {
      if (!array.key.covers(key)) continue;
      const std::int64_t left = std::ssize(array.numbers) - array.used;
      if (rows > left)
        refuse_recording(fmt::format("{}: has {} {}, expected {} more for call {}, of which {} has {} rows",
                                     array.where, array.numbers.size(), what_, rows - left, std::max(key.call, 0),
                                     of.where, rows));
      const auto from = array.numbers.begin() + array.used, end = from + (rows < 0 ? left : rows);
      array.used = end - array.numbers.begin();
      return {from, end};
    }
    refuse_recording(fmt::format("{}: call {} has no {}", arrays_.front().where, std::max(key.call, 0), what_));
  }

  // A last token that was generated has no row.
  void check_used(std::int64_t spare) const {
    for (const Array& array : arrays_)
      if (std::ssize(array.numbers) - array.used > spare)
        refuse_recording(fmt::format("{}: has {} {}, expected {}, as the arrays have rows", array.where,
                                     array.numbers.size(), what_, array.used));
  }

 private:
  struct Array {
    MapKey key;
    std::string where;
    Numbers numbers;
    std::int64_t used = 0;
  };
  std::string what_;
  std::vector<Array> arrays_;
};

// Lengths of sequences: as they are, or added up from 0 on (cu_seqlens).
Numbers lengths_of(Numbers numbers, std::int64_t rows, const std::string& where) {
  const bool is_added_up = numbers.size() > 1 && numbers.front() == 0 && numbers.back() == rows;
  if (is_added_up) {
    std::adjacent_difference(numbers.begin(), numbers.end(), numbers.begin());
    numbers.erase(numbers.begin());
  }
  const bool is_sound = std::all_of(numbers.begin(), numbers.end(), [](std::int64_t n) { return n > 0; });
  if (!is_sound || std::accumulate(numbers.begin(), numbers.end(), std::int64_t{0}) != rows)
    refuse_recording(
        fmt::format("{}: lengths: found {}, expected the rows of each sequence, or their sums from 0 on, of {} rows",
                    where, fmt::join(std::span(numbers).first(std::min<std::size_t>(numbers.size(), 8)), ", "), rows));
  return numbers;
}

class MapCalls {
 public:
  MapCalls(MapFiles& files, const DumpMap& map, const ModelConfig& config)
      : folder_(files.folder()),
        config_(config),
        tokens_(files, map, map.tokens, "tokens"),
        positions_(files, map, map.positions, "positions"),
        lengths_(files, map, map.lengths, "lengths") {}

  MappedCalls find(const std::vector<MapRowCount>& counts) {
    for (const MapRowCount& count : counts) see(count);
    const bool has_stages = !rows_.empty();
    for (const MapRowCount& count : positions_.counts()) see(count);
    if (!has_stages && rows_.empty())
      for (const MapRowCount& count : tokens_.counts()) see(count);
    drop_covering();
    if (rows_.empty())
      refuse_recording(
          fmt::format("{}: no stage has all rows of a call: the map has to say tokens or positions", folder_));
    if (!positions_.is_said()) check_numbers();
    std::string text;
    std::vector<MapKey> lines;
    for (const auto& [key, of] : rows_) {
      text += line_of(key, of) + '\n';
      lines.push_back(key);
    }
    tokens_.check_used(1);
    positions_.check_used(0);
    MappedCalls calls{CallTable::parse(text, fmt::format("{} (calls, as the map finds them)", folder_), config_), {}};
    for (const CallPart& part : calls.table.parts()) calls.keys.push_back(lines[static_cast<std::size_t>(part.line)]);
    return calls;
  }

 private:
  void see(const MapRowCount& count) {
    MapRowCount& most = rows_[count.key];
    if (count.rows > most.rows) most = count;
  }

  // Rows of a call that is missing would be taken from the next one.
  void check_numbers() const {
    std::map<std::string, int> last;  // by request
    for (const auto& [key, of] : rows_) {
      const auto [before, is_first] = last.try_emplace(key.request, key.call);
      if (!is_first && key.call != before->second + 1)
        refuse_recording(
            fmt::format("{}: is of call {}, and nothing is of call {}: where calls are missing, the map has to "
                        "say positions",
                        of.where, key.call, before->second + 1));
      before->second = key.call;
    }
  }

  // An array of all calls says nothing of their sizes.
  void drop_covering() {
    for (auto one = rows_.begin(); one != rows_.end();) {
      const bool covers = std::any_of(rows_.begin(), rows_.end(), [&](const auto& other) {
        return !(other.first == one->first) && one->first.covers(other.first);
      });
      one = covers ? rows_.erase(one) : std::next(one);
    }
  }

  std::string line_of(const MapKey& key, const MapRowCount& of) {
    const std::int64_t rows = of.rows;
    Json line = Json::object();
    const Numbers tokens = tokens_.is_said() ? tokens_.take(key, of) : Numbers();
    const Numbers positions = positions_.is_said() ? positions_.take(key, of) : Numbers();
    if (!lengths_.is_said()) {
      put(line, key.request.empty() ? "0" : key.request, tokens, positions, 0, rows);
      return line.dump();
    }
    if (!key.request.empty())
      refuse_recording(fmt::format("{}: lengths: the rows are of request {} alone", folder_, shown(key.request)));
    std::int64_t first = 0;
    for (const std::int64_t length : lengths_of(lengths_.all(key), rows, folder_)) {
      Json part = Json::object();
      put(part, std::to_string(line["parts"].size()), tokens, positions, first, length);
      line["parts"].push_back(std::move(part));
      first += length;
    }
    return line.dump();
  }

  static void put(Json& json, const std::string& request, const Numbers& tokens, const Numbers& positions,
                  std::int64_t first, std::int64_t rows) {
    const auto some = [&](const Numbers& numbers) {
      return Numbers(numbers.begin() + first, numbers.begin() + first + rows);
    };
    json["request"] = request;
    json["rows"] = rows;
    if (!tokens.empty()) json["tokens"] = some(tokens);
    if (!positions.empty()) json["positions"] = some(positions);
  }

  const std::string& folder_;
  const ModelConfig& config_;
  RowNumbers tokens_, positions_, lengths_;
  std::map<MapKey, MapRowCount> rows_;  // of each call and request
};

}  // namespace

MappedCalls MappedCalls::find(MapFiles& files, const DumpMap& map, const ModelConfig& config,
                              const std::vector<MapRowCount>& counts) {
  if (!map.calls) return MapCalls(files, map, config).find(counts);
  MappedCalls calls{CallTable::read(files.folder() + '/' + map.calls->text, config, /*is_cut=*/false), {}};
  calls.keys.resize(calls.table.parts().size());
  for (std::size_t c = 0; c < calls.table.calls().size(); ++c) {
    const RecordedCall& call = calls.table.calls()[c];
    calls.keys[static_cast<std::size_t>(calls.table.place_of(static_cast<int>(c)).part)] = {call.number, call.request};
  }
  return calls;
}

}  // namespace moe_diag
