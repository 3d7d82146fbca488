// SPDX-License-Identifier: MIT
#include "plugins/sinks/stats/record.hpp"

#include <fmt/format.h>

#include <array>
#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>

namespace moe_diag {

namespace {

using Json = nlohmann::ordered_json;

bool has_layer(const StatsRecord& r) { return info(r.site.stage).scope == Scope::layer; }

// The shortest text that reads back as the same number, whatever the locale.
std::string text_of(double v) {
  std::array<char, 32> buffer{};
  const auto [end, error] = std::to_chars(buffer.data(), buffer.data() + buffer.size(), v);
  return error == std::errc() ? std::string(buffer.data(), end) : "";
}

// JSON has no NaN and no infinities.
Json number(std::optional<double> v) {
  if (!v) return nullptr;
  return std::isfinite(*v) ? Json(*v) : Json(text_of(*v));
}
Json number(std::optional<std::int32_t> v) { return v ? Json(*v) : Json(); }
Json place(const std::optional<Place>& p) {
  return p ? Json{{"position", p->position}, {"element", p->element}} : Json();
}

Json json_of(const StatsRecord& r) {
  Json json{{"prompt", r.prompt},
            {"lane", r.lane},
            {"stage", name_of(r.site.stage)},
            {"layer", has_layer(r) ? Json(r.site.layer) : Json()},
            {"dtype", name_of(r.dtype)},
            {"rows", r.rows}};
  if (const auto* s = std::get_if<IndexStats>(&r.stats)) {
    json.update(
        {{"count", s->count()}, {"min", number(s->min())}, {"max", number(s->max())}, {"distinct", s->distinct()}});
    return json;
  }
  const auto& s = std::get<ValueStats>(r.stats);
  json.update({{"count", s.count()},
               {"min", number(s.min())},
               {"max", number(s.max())},
               {"mean", number(s.mean())},
               {"std", number(s.std())},
               {"l2", number(s.l2())},
               {"rms", number(s.rms())},
               {"absmax", number(s.absmax())},
               {"absmax_at", place(s.absmax_at())},
               {"zeros", s.zeros()},
               {"nan", s.nan()},
               {"first_nan", place(s.first_nan())},
               {"inf", s.inf()},
               {"first_inf", place(s.first_inf())}});
  return json;
}

std::string csv_text(std::string_view text) {
  if (text.find_first_of(",\"\n\r") == std::string_view::npos) return std::string(text);
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? "\"\"" : std::string(1, c);
  return quoted + '"';
}
std::string csv_cell(std::optional<double> v) { return v ? text_of(*v) : ""; }
std::string csv_cell(std::optional<std::int32_t> v) { return v ? std::to_string(*v) : ""; }
std::string csv_cell(const std::optional<Place>& p) {
  return p ? fmt::format("{},{}", p->position, p->element) : std::string(",");
}

std::string csv_line(const StatsRecord& r) {
  const std::string head =
      fmt::format("{},{},{},{},{},{},", csv_text(r.prompt), csv_text(r.lane), name_of(r.site.stage),
                  has_layer(r) ? std::to_string(r.site.layer) : "", name_of(r.dtype), r.rows);
  if (const auto* s = std::get_if<IndexStats>(&r.stats))
    return head + fmt::format("{},{},{},,,,,,,,,,,,,,,{}\n", s->count(), csv_cell(s->min()), csv_cell(s->max()),
                              s->distinct());
  const auto& s = std::get<ValueStats>(r.stats);
  return head + fmt::format("{},{},{},{},{},{},{},{},{},{},{},{},{},{},\n", s.count(), csv_cell(s.min()),
                            csv_cell(s.max()), csv_cell(s.mean()), csv_cell(s.std()), csv_cell(s.l2()),
                            csv_cell(s.rms()), csv_cell(s.absmax()), csv_cell(s.absmax_at()), s.zeros(), s.nan(),
                            csv_cell(s.first_nan()), s.inf(), csv_cell(s.first_inf()));
}

bool is_notable(const StatsRecord& r) {
  const auto* s = std::get_if<ValueStats>(&r.stats);
  return s && s->nan() + s->inf() > 0;
}

std::string table_cell(std::optional<double> v) { return v ? fmt::format("{:.4g}", *v) : "-"; }

std::string table_line(const StatsRecord& r) {
  const std::string head =
      fmt::format("  {:>5} {:<20}", has_layer(r) ? std::to_string(r.site.layer) : "-", name_of(r.site.stage));
  if (const auto* s = std::get_if<IndexStats>(&r.stats))
    return head + fmt::format(" {:>10} {:>11} {:>11}   {} distinct\n", s->count(), csv_cell(s->min()),
                              csv_cell(s->max()), s->distinct());
  const auto& s = std::get<ValueStats>(r.stats);
  std::string line = head + fmt::format(" {:>10} {:>11} {:>11} {:>11} {:>11} {:>11} {:>6} {:>6}", s.count(),
                                        table_cell(s.min()), table_cell(s.max()), table_cell(s.mean()),
                                        table_cell(s.std()), table_cell(s.rms()), s.nan(), s.inf());
  const std::optional<Place> first = s.first_nan() ? s.first_nan() : s.first_inf();
  if (first) line += fmt::format("  first: position {}, element {}", first->position, first->element);
  return line + "\n";
}

std::string table_of_lane(const std::vector<const StatsRecord*>& records, std::size_t rows, std::string_view file) {
  std::string text = fmt::format(
      "prompt {}, lane {}\n  {:>5} {:<20} {:>10} {:>11} {:>11} {:>11} {:>11} {:>11} {:>6} {:>6}\n", records[0]->prompt,
      records[0]->lane, "layer", "stage", "count", "min", "max", "mean", "std", "rms", "nan", "inf");
  const std::size_t head = records.size() <= rows ? rows : rows / 2;
  const std::size_t tail = records.size() <= rows ? 0 : records.size() - (rows - head);
  std::size_t elided = 0;
  const auto flush = [&] {
    if (elided > 0) text += fmt::format("    ... {} more in {}\n", elided, file);
    elided = 0;
  };
  for (std::size_t i = 0; i < records.size(); ++i) {
    if (i >= head && i < tail && !is_notable(*records[i])) {
      ++elided;
      continue;
    }
    flush();
    text += table_line(*records[i]);
  }
  return text;
}

}  // namespace

std::string json_of(const RunInfo& run, const std::vector<const StatsRecord*>& records) {
  const auto dump = [](const Json& json) { return json.dump(-1, ' ', false, Json::error_handler_t::replace); };
  std::string text = fmt::format(
      "{{\n\"format\": \"moe-diag stats\",\n\"format_version\": 1,\n\"tool_version\": {},\n\"contract\": "
      "{},\n\"model\": {},\n\"planted\": {},\n\"sites\": [",
      dump(Json(run.tool_version)), dump(Json{{"id", run.contract}, {"version", run.contract_version}}),
      dump(Json{{"source", run.model.source}, {"bytes", run.model.bytes}, {"digest", run.model.digest()}}),
      dump(Json(std::vector<std::string_view>(run.planted.begin(), run.planted.end()))));
  for (std::size_t i = 0; i < records.size(); ++i) text += (i ? ",\n  " : "\n  ") + dump(json_of(*records[i]));
  return text + "\n]\n}\n";
}

std::string csv_of(const std::vector<const StatsRecord*>& records) {
  std::string text =
      "prompt,lane,stage,layer,dtype,rows,count,min,max,mean,std,l2,rms,absmax,absmax_position,absmax_element,zeros,"
      "nan,nan_position,nan_element,inf,inf_position,inf_element,distinct\n";
  for (const StatsRecord* r : records) text += csv_line(*r);
  return text;
}

std::string table_of(const std::vector<const StatsRecord*>& records, std::size_t rows, std::string_view file) {
  std::string text;
  std::vector<const StatsRecord*> lane;
  for (std::size_t i = 0; i < records.size(); ++i) {
    lane.push_back(records[i]);
    const bool last = i + 1 == records.size() || records[i + 1]->prompt != records[i]->prompt ||
                      records[i + 1]->lane != records[i]->lane;
    if (!last) continue;
    text += table_of_lane(lane, rows, file);
    lane.clear();
  }
  return text;
}

}  // namespace moe_diag
