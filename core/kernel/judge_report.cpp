// SPDX-License-Identifier: MIT
#include "core/kernel/judge_report.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "core/kernel/case_footprint.hpp"
#include "core/ops/numerics.hpp"
#include "core/report/text.hpp"

namespace moe_diag {
namespace {

using Json = nlohmann::ordered_json;

constexpr int schema_version = 1;

std::string_view word_of(const JudgedKernel& judged) {
  if (judged.count(CaseOutcome::refused) > 0) return "REFUSED";
  if (judged.count(CaseOutcome::falsified) > 0) return "FALSIFIED";
  return judged.count(CaseOutcome::untested) > 0 ? "UNTESTED" : "HELD";
}

// "f32, reads fp8_128, stored as bf16"
std::string numerics_text(const CaseIndex& index) {
  EngineNumerics engine;
  engine.reads = index.reads;
  engine.stored = index.stored;
  const std::string more = text_of(engine);
  return index.numerics + (more.empty() ? "" : ", " + more);
}

std::string head_of(const JudgedKernel& judged) {
  std::string text = fmt::format("{}: {} in {}: {} held, {} falsified, {} untested", word_of(judged), judged.index.span,
                                 numerics_text(judged.index), judged.count(CaseOutcome::held),
                                 judged.count(CaseOutcome::falsified), judged.count(CaseOutcome::untested));
  if (const std::size_t refused = judged.count(CaseOutcome::refused)) text += fmt::format(", {} refused", refused);
  return text + '\n';
}

std::string place_of(const JudgedVector& v) {
  return v.slot < 0 ? fmt::format("row {}", v.row) : fmt::format("row {}, slot {}, expert {}", v.row, v.slot, v.expert);
}

std::string line_of(const JudgedCase& c, std::size_t width) {
  std::string line = fmt::format("{:<10} {:<{}} {:>5}", name_of(c.outcome), c.of->name, width, c.of->rows);
  const JudgedVector* worst = c.worst();
  if (!worst) return fmt::format("{}  {}\n", line, c.why);
  return fmt::format("{}  {:<10.4g} {:<10.4g} {}\n", line, worst->error, worst->allowed, place_of(*worst));
}

std::string table_of(const JudgedKernel& judged) {
  std::size_t width = 4;
  for (const JudgedCase& c : judged.cases) width = std::max(width, c.of->name.size());
  std::string text = fmt::format("{:<10} {:<{}} {:>5}  {:<10} {:<10} {}\n", "outcome", "case", width, "rows", "worst",
                                 "allowed", "where");
  for (const JudgedCase& c : judged.cases) text += line_of(c, width);
  return text;
}

std::string nonfinite_text(const JudgedCase& c) {
  for (const JudgedVector& v : c.vectors)
    if (v.nonfinite > 0)
      return fmt::format("{} not finite, the first at {}, column {}",
                         counted(static_cast<std::size_t>(c.footprint.nonfinite), "value"), place_of(v),
                         v.first_nonfinite);
  return "";
}

// The reason to tell falsified cases together: their cause, or else what their wrong values have in common.
struct Finding {
  std::string cause, unexplained, experts, columns;

  friend bool operator==(const Finding&, const Finding&) = default;
};

Finding finding_of(const JudgedKernel& judged, const JudgedCase& c) {
  if (!c.cause.empty()) return {c.cause, {}, {}, {}};
  return {c.cause, c.unexplained, experts_text(judged.index, c.footprint), columns_text(c.footprint)};
}

void add_line(std::string& text, std::string_view key, const std::string& value) {
  if (!value.empty()) text += fmt::format("  {:<10} {}\n", key, value);
}

// "all 12 cases", "layer_03_rows_1, layer_03_rows_7"
std::string cases_text(const JudgedKernel& judged, const std::vector<const JudgedCase*>& cases) {
  constexpr std::size_t most_names = 6;
  if (cases.size() == judged.cases.size() && cases.size() > 1) return fmt::format("all {} cases", cases.size());
  std::vector<std::string> names;
  for (const JudgedCase* c : cases)
    if (names.size() < most_names) names.push_back(c->of->name);
  const std::size_t more = cases.size() - names.size();
  return fmt::format("{}{}", fmt::join(names, ", "), more > 0 ? fmt::format(" and {} more", more) : "");
}

std::string finding_text(const JudgedKernel& judged, const Finding& finding,
                         const std::vector<const JudgedCase*>& cases) {
  const JudgedCase& worst_case = **std::max_element(
      cases.begin(), cases.end(),
      [](const JudgedCase* x, const JudgedCase* y) { return x->worst()->ratio() < y->worst()->ratio(); });
  const JudgedVector& worst = *worst_case.worst();
  const std::string where = cases.size() > 1 ? fmt::format(" of {}", worst_case.of->name) : "";
  const bool unknown = finding.cause.empty() && judged.no_causes.empty();
  std::string text = fmt::format("\n{} is wrong in {}\n", judged.index.output, cases_text(judged, cases));
  add_line(text, "cause", unknown ? "not known: " + finding.unexplained : finding.cause);
  add_line(text, "experts", experts_text(judged.index, worst_case.footprint));
  add_line(text, "columns", columns_text(worst_case.footprint));
  add_line(text, "rows", rows_text(worst_case.footprint, worst_case.of->rows) + where);
  add_line(text, "worst", fmt::format("{}{}: {:.3g} times the allowed error", place_of(worst), where, worst.ratio()));
  add_line(text, "nonfinite", nonfinite_text(worst_case));
  return text;
}

// Cases with the same finding stand together, in the order of the first of them.
std::vector<std::pair<Finding, std::vector<const JudgedCase*>>> findings_of(const JudgedKernel& judged) {
  std::vector<std::pair<Finding, std::vector<const JudgedCase*>>> findings;
  for (const JudgedCase& c : judged.cases) {
    if (c.outcome != CaseOutcome::falsified) continue;
    const Finding own = finding_of(judged, c);
    const auto there = std::find_if(findings.begin(), findings.end(), [&](const auto& f) { return f.first == own; });
    if (there == findings.end())
      findings.push_back({own, {&c}});
    else
      there->second.push_back(&c);
  }
  return findings;
}

// Non-finite numbers as text: JSON has none.
Json number(double x) { return std::isfinite(x) ? Json(x) : Json(fmt::format("{}", x)); }

Json failing_json(const JudgedCase& c) {
  Json list = Json::array();
  for (const JudgedVector& v : c.vectors) {
    if (!v.fails) continue;
    Json one{{"row", v.row}};
    if (v.slot >= 0) one["slot"] = v.slot;
    if (v.slot >= 0) one["expert"] = v.expert;
    one["error"] = number(v.error);
    one["allowed"] = v.allowed;
    one["ratio"] = number(v.ratio());
    if (v.nonfinite > 0) one["nonfinite"] = v.nonfinite;
    list.push_back(std::move(one));
  }
  return list;
}

Json case_json(const JudgedKernel& judged, const JudgedCase& c) {
  Json json{{"name", c.of->name},
            {"layer", c.of->layer},
            {"rows", c.of->rows},
            {"routing", name_of(c.of->routing)},
            {"outcome", name_of(c.outcome)}};
  if (!c.why.empty()) json["why"] = c.why;
  if (const JudgedVector* worst = c.worst())
    json["worst"] = {{"row", worst->row}, {"error", number(worst->error)}, {"allowed", worst->allowed}};
  if (c.outcome != CaseOutcome::falsified) return json;
  Json columns = Json::array();
  for (const Range& range : c.footprint.columns) columns.push_back({range.first, range.second});
  json["failing"] = failing_json(c);
  json["columns"] = columns;
  json["experts"] = c.footprint.experts;
  json["cause"] = c.cause.empty() ? Json() : Json(c.cause);
  if (c.cause.empty()) json["no_cause"] = judged.no_causes.empty() ? c.unexplained : judged.no_causes;
  return json;
}

}  // namespace

std::string judge_report(const JudgedKernel& judged, const std::string& folder) {
  std::string text = head_of(judged) + '\n' + table_of(judged);
  if (!judged.row_counts.empty()) text += '\n';
  for (const std::string& one : judged.row_counts) text += one + '\n';
  for (const auto& [finding, cases] : findings_of(judged)) text += finding_text(judged, finding, cases);
  if (!judged.no_causes.empty()) text += fmt::format("\nno cause was looked for: {}\n", judged.no_causes);
  return text + fmt::format("\ncases      {}, of {}\n", folder, judged.index.model_source);
}

std::string judge_json(const JudgedKernel& judged, const std::string& folder, const std::string& tool_version) {
  Json cases = Json::array();
  for (const JudgedCase& c : judged.cases) cases.push_back(case_json(judged, c));
  Json document{{"schema", schema_version},
                {"tool", tool_version},
                {"folder", folder},
                {"model", {{"source", judged.index.model_source}, {"digest", judged.index.model_digest}}},
                {"span", judged.index.span},
                {"output", judged.index.output},
                {"numerics", judged.index.numerics},
                {"reads", judged.index.reads},
                {"stored", judged.index.stored},
                {"outcome", name_of(judged.count(CaseOutcome::refused) > 0     ? CaseOutcome::refused
                                    : judged.count(CaseOutcome::falsified) > 0 ? CaseOutcome::falsified
                                    : judged.count(CaseOutcome::untested) > 0  ? CaseOutcome::untested
                                                                               : CaseOutcome::held)},
                {"row_counts", judged.row_counts}};
  if (!judged.no_causes.empty()) document["no_causes"] = judged.no_causes;
  document["cases"] = cases;
  return document.dump(1, ' ', false, Json::error_handler_t::replace) + '\n';
}

}  // namespace moe_diag
