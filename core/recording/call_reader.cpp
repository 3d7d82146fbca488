// SPDX-License-Identifier: MIT
// Lines of calls.jsonl. Each mistake names file, line and call.
#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <limits>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "core/file/bounded_file.hpp"
#include "core/recording/call_table.hpp"
#include "core/recording/site_name.hpp"
#include "core/recording/strict_json.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr int most = std::numeric_limits<int>::max();
constexpr int largest_position = 1'000'000;  // as many tokens as a prompt may have
constexpr std::size_t largest_file = std::size_t{1} << 30;
const std::vector<std::string> part_keys{"request", "first", "positions", "rows", "tokens", "recorded"};
const std::vector<std::string> fact_keys{"padding", "mode", "graph_size", "kernel", "rank"};

std::vector<std::string> keys_of_line() {
  std::vector<std::string> keys = part_keys;
  keys.push_back("parts");
  keys.insert(keys.end(), fact_keys.begin(), fact_keys.end());
  return keys;
}

// One request's rows in a call, as its line says.
struct PartLine {
  std::string request;
  std::vector<std::int32_t> positions, tokens;  // each empty or one a row
  int first = 0, rows = 0;
};

}  // namespace

class CallReader {
 public:
  CallReader(const std::string& path, const ModelConfig& config) : path_(path), config_(config) {}

  CallTable read(std::string_view rest, bool is_cut) {
    while (!rest.empty()) {
      const std::size_t end = rest.find('\n');
      if (end == std::string_view::npos && is_cut) break;  // its newline comes last
      add_line(rest.substr(0, end));
      rest.remove_prefix(end == std::string_view::npos ? rest.size() : end + 1);
    }
    if (table_.lines() == 0 && !is_cut)
      refuse_recording(fmt::format("{}: has no line, expected one for each call of the engine", path_));
    return std::move(table_);
  }

 private:
  void add_line(std::string_view text) {
    const int number = table_.lines();
    const std::string where = fmt::format("{}:{} (call {})", path_, number + 1, number);
    if (text.find_first_not_of(" \t\r") == std::string_view::npos)
      refuse_recording(fmt::format("{}: the line is empty, expected a call; remove it", where));
    const JsonFields line = JsonFields::parse(text, where);
    line.refuse_others(keys_of_line());
    const std::vector<JsonFields> parts = parts_of(line);
    const std::size_t first_part = table_.parts_.size();
    std::vector<PartLine> read;
    std::int64_t rows = 0;
    for (const JsonFields& part : parts) {
      read.push_back(read_part(part));
      rows += read.back().rows;
      table_.parts_.push_back({number, read.back().rows, {}, {}});
      if (line.has("parts")) keep_of(part, first_part + read.size() - 1, 1);
    }
    if (rows > most) refuse_recording(fmt::format("{}: has {} rows, expected at most {}", where, rows, most));
    keep_of(line, first_part, read.size());
    const int padding = line.number("padding", 0, most).value_or(0);
    if (padding >= rows)
      refuse_recording(
          fmt::format("{}: padding: {} of {} rows: expected fewer, they are counted among the rows of the call", where,
                      padding, rows));
    in_line_.clear();
    RecordedCall call = facts_of(line, number);
    call.batch_rows = static_cast<int>(rows) - padding;
    add_calls(line, read, first_part, padding, call);
    table_.line_parts_.push_back(static_cast<int>(table_.parts_.size()));
    table_.paddings_.push_back(padding);
    table_.graph_sizes_.push_back(call.graph_size);
  }

  static std::vector<JsonFields> parts_of(const JsonFields& line) {
    if (!line.has("parts")) return {line};
    for (const std::string& key : part_keys)
      if (line.has(key.c_str()) && key != "recorded")
        refuse_recording(fmt::format("{}: has parts and {}: {} belongs to each part", line.where(), key, key));
    std::vector<JsonFields> parts = line.objects("parts");
    if (parts.empty())
      refuse_recording(fmt::format("{}: parts: has none, expected one for each request", line.where()));
    for (const JsonFields& part : parts) part.refuse_others(part_keys);
    return parts;
  }

  static RecordedCall facts_of(const JsonFields& line, int number) {
    RecordedCall call;
    call.number = number;
    call.mode = line.text("mode").value_or("");
    call.kernel = line.text("kernel").value_or("");
    call.rank = line.number("rank", 0, most).value_or(-1);
    call.graph_size = line.number("graph_size", 0, most).value_or(0);
    return call;
  }

  PartLine read_part(const JsonFields& part) {
    PartLine read;
    read.request = part.text("request").value_or("0");
    if (read.request.empty())
      refuse_recording(fmt::format("{}: request: is empty, expected a name of the sequence", part.where()));
    const auto positions = part.numbers("positions"), tokens = part.numbers("tokens");
    const auto rows = part.number("rows", 1, most);
    if (positions && part.has("first"))
      refuse_recording(fmt::format("{}: has first and positions, expected one of them", part.where()));
    read.positions = positions.value_or(std::vector<std::int32_t>());
    read.tokens = tokens.value_or(std::vector<std::int32_t>());
    read.rows = rows        ? *rows
                : tokens    ? static_cast<int>(tokens->size())
                : positions ? static_cast<int>(positions->size())
                            : 0;
    if (read.rows == 0)
      refuse_recording(fmt::format("{}: has no rows: expected tokens, positions or rows", part.where()));
    const auto check = [&](const char* key, const auto& list) {
      if (list && list->size() != static_cast<std::size_t>(read.rows))
        refuse_recording(fmt::format("{}: {}: found {}, expected one for each of {} rows", part.where(), key,
                                     list->size(), read.rows));
    };
    check("tokens", tokens);
    check("positions", positions);
    read.first = part.number("first", 0, most).value_or(next_.contains(read.request) ? next_[read.request] : 0);
    if (static_cast<std::int64_t>(read.first) + read.rows > most)
      refuse_recording(fmt::format("{}: {} rows from position {} on: expected positions up to {}", part.where(),
                                   read.rows, read.first, most));
    return read;
  }

  // `recorded` of a part, or of a line, whose last rows may be of several parts.
  void keep_of(const JsonFields& fields, std::size_t first, std::size_t count) {
    if (!fields.has("recorded")) return;
    const nlohmann::json& recorded = fields.json()["recorded"];
    const auto share = [&](int rows, const auto& give) {
      for (std::size_t p = first + count; p-- > first;) {
        CallPart& part = table_.parts_[p];
        const int of_part = std::min(rows, part.rows);
        give(part, of_part);
        rows -= of_part;
      }
      if (rows > 0) refuse_recording(fmt::format("{}: recorded: {} rows more than the call has", fields.where(), rows));
    };
    if (!recorded.is_object()) {
      const int all = *fields.number("recorded", 0, most);
      share(all, [](CallPart& part, int rows) { part.kept = rows; });
      return;
    }
    const JsonFields stages(recorded, fields.where() + ": recorded");
    for (const auto& [name, value] : recorded.items()) {
      const auto [stage, layer] = kept_key(stages.where(), name);
      share(*stages.number(name.c_str(), 0, most), [&](CallPart& part, int rows) {
        if (part.kept_of.contains({stage.index(), layer}))
          refuse_recording(fmt::format("{}: {}: the same stage is said twice", stages.where(), shown(name)));
        part.kept_of[{stage.index(), layer}] = rows;
      });
    }
  }

  // A stage in every layer, or in one: "layer_47/<stage>".
  std::pair<Stage, int> kept_key(const std::string& where, const std::string& name) const {
    if (name.find('/') == std::string::npos) return {stage_named(name, config_, where), every_layer};
    const Site site = site_named(name, config_, where);
    return {site.stage, site.layer};
  }

  // A call for each run of consecutive positions.
  void add_calls(const JsonFields& line, const std::vector<PartLine>& parts, std::size_t first_part, int padding,
                 const RecordedCall& facts) {
    std::vector<int> rows;
    for (const PartLine& part : parts) rows.push_back(part.rows);
    for (std::size_t p = parts.size(); p-- > 0 && padding > 0;) {
      const int of_part = std::min(rows[p], padding);
      rows[p] -= of_part;
      padding -= of_part;
    }
    for (std::size_t p = 0; p < parts.size(); ++p)
      add_part(line, parts[p], static_cast<int>(first_part + p), rows[p], facts);
  }

  void add_part(const JsonFields& line, const PartLine& part, int index, int rows, const RecordedCall& facts) {
    const auto position = [&](int row) {
      return part.positions.empty() ? part.first + row : part.positions[static_cast<std::size_t>(row)];
    };
    for (int begin = 0, end = 0; begin < rows; begin = end) {
      end = part.positions.empty() ? rows : begin + 1;
      while (end < rows && position(end) == position(end - 1) + 1) ++end;
      if (end < rows && position(end) <= position(end - 1)) refuse_descent(line, position(end - 1), position(end));
      RecordedCall call = facts;
      call.request = part.request;
      call.first = position(begin);
      if (position(end - 1) >= largest_position)
        refuse_recording(fmt::format("{}: position {}: expected less than {}; the model's context has {}", line.where(),
                                     position(end - 1), largest_position, config_.context));
      call.rows = end - begin;
      check_new(line, call);
      if (!part.tokens.empty()) {
        call.tokens.assign(part.tokens.begin() + begin, part.tokens.begin() + end);
        check_tokens(line, call);
      }
      table_.places_.push_back({index, begin});
      table_.calls_.push_back(std::move(call));
    }
    if (rows > 0) next_[part.request] = position(rows - 1) == most ? most : position(rows - 1) + 1;
  }

  [[noreturn]] static void refuse_descent(const JsonFields& line, int before, int after) {
    refuse_recording(
        fmt::format("{}: positions: {} stands behind {}, expected ascending positions within a call: trees of drafts "
                    "are not taken, record the branch that was accepted",
                    line.where(), after, before));
  }

  // Two parts of a call are not of the same positions.
  void check_new(const JsonFields& line, const RecordedCall& call) {
    std::map<int, int>& seen = in_line_[call.request];  // first to end
    auto other = seen.lower_bound(call.end());
    if (other != seen.begin() && std::prev(other)->second > call.first)
      refuse_recording(fmt::format("{}: position {} of request {} comes twice in the call, expected once", line.where(),
                                   std::max(std::prev(other)->first, call.first), shown(call.request)));
    seen[call.first] = call.end();
  }

  void check_tokens(const JsonFields& line, const RecordedCall& call) const {
    for (std::size_t i = 0; i < call.tokens.size(); ++i)
      if (call.tokens[i] >= config_.vocab)
        refuse_recording(fmt::format(
            "{}: token {} at position {}: the model's vocabulary has {}, numbered 0 to {}; is "
            "the recording of another model?",
            line.where(), call.tokens[i], call.first + static_cast<int>(i), config_.vocab, config_.vocab - 1));
  }

  const std::string& path_;
  const ModelConfig& config_;
  CallTable table_;
  std::map<std::string, int> next_;                    // by request: the position behind its last call
  std::map<std::string, std::map<int, int>> in_line_;  // by request: positions of the line at hand
};

CallTable CallTable::read(const std::string& path, const ModelConfig& config, bool is_cut) {
  std::string text;
  try {
    text = read_bounded(path, largest_file);
  } catch (const Error& e) {
    refuse_recording(fmt::format("{}: {}: expected a line for each call of the engine", path, e.what()));
  }
  return CallReader(path, config).read(text, is_cut);
}

CallTable CallTable::parse(std::string_view text, const std::string& where, const ModelConfig& config) {
  return CallReader(where, config).read(text, /*is_cut=*/false);
}

}  // namespace moe_diag
