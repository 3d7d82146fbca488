// SPDX-License-Identifier: MIT
#include "core/report/github.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <filesystem>
#include <sstream>
#include <vector>

#include "core/report/diagnosis_text.hpp"
#include "core/report/text.hpp"
#include "core/text/utf8.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t most_annotations = 10;  // as many of a kind as GitHub shows of a step
constexpr std::size_t most_rows = 500;        // a summary that is longer than 1 MiB is not shown at all
constexpr std::size_t longest_cell = 200;

struct Annotation {
  std::string_view level;  // "error", "warning"
  std::string file;        // empty: of no file
  int line = 0, column = 0;
  std::string title, message;
};

std::string escaped(std::string_view text, bool property) {
  std::string out;
  for (const char c : text) switch (c) {
      case '%': out += "%25"; break;
      case '\r': out += "%0D"; break;
      case '\n': out += "%0A"; break;
      case ':': out += property ? "%3A" : ":"; break;
      case ',': out += property ? "%2C" : ","; break;
      default: out += c;
    }
  return out;
}

std::string path_in(std::string_view workspace, const std::string& path) {
  if (workspace.empty() || path.empty()) return path;
  std::error_code error;
  const auto full = std::filesystem::weakly_canonical(path, error);
  if (error) return path;
  const auto root = std::filesystem::weakly_canonical(workspace, error);
  if (error) return path;
  const std::string relative = full.lexically_relative(root).string();
  return relative.empty() || relative.starts_with("..") ? path : relative;
}

std::string command(const Annotation& a) {
  std::string text = fmt::format("::{} ", a.level);
  if (!a.file.empty()) text += fmt::format("file={},", escaped(a.file, true));
  if (a.line > 0) text += fmt::format("line={},", a.line);
  if (a.column > 0) text += fmt::format("col={},", a.column);
  return text +
         fmt::format("title={}::{}\n", escaped(clean_text(a.title), true), escaped(clean_text(a.message), false));
}

// Errors before warnings, else as they came; ten, and a notice: it does not count against GitHub's ten of a kind.
std::string commands(std::vector<Annotation> list) {
  std::stable_partition(list.begin(), list.end(), [](const Annotation& a) { return a.level == "error"; });
  std::string text;
  for (std::size_t i = 0; i < std::min(list.size(), most_annotations); ++i) text += command(list[i]);
  if (list.size() > most_annotations)
    text += command({"notice", "", 0, 0, "moe-diag",
                     fmt::format("{} more are in the report and the step's summary", list.size() - most_annotations)});
  return text;
}

// "file:line:column: what"; of no file when the line is not like that.
Annotation placed(const std::string& line) {
  for (std::size_t colon = line.find(':'); colon != std::string::npos; colon = line.find(':', colon + 1)) {
    Annotation a{"error", line.substr(0, colon), 0, 0, "moe-diag", ""};
    const char *at = line.data() + colon + 1, *end = line.data() + line.size();
    for (int* number : {&a.line, &a.column}) {
      const auto [stop, error] = std::from_chars(at, end, *number);
      if (error != std::errc() || stop == end || *stop != ':') break;
      at = stop + 1;
    }
    if (a.column < 1 || at == end || *at != ' ') continue;
    a.message.assign(at + 1, end);
    return a;
  }
  return {"error", "", 0, 0, "moe-diag", line};
}

std::string cell(std::string_view text) {
  std::string shown = clean_text(text), out;
  if (shown.size() > longest_cell) {
    std::size_t end = longest_cell;
    while ((static_cast<unsigned char>(shown[end]) & 0xc0) == 0x80) --end;  // not within a character
    if (const std::size_t blank = shown.rfind(' ', end); blank != std::string::npos && blank > longest_cell / 2)
      end = blank;  // nor within a word or a number
    shown.replace(end, std::string::npos, "...");
  }
  for (const char c : shown) {
    if (std::string_view("\\`*_[]<>|~&#@").find(c) != std::string_view::npos) out += '\\';
    out += c == '\n' || c == '\t' ? ' ' : c;
  }
  return out;
}

// Of the worst sample, as the number beside it, and why it fails.
std::string where_text(const Verdict& v, const Judgement& j) {
  const SiteResult* worst = j.worst();
  if (!worst || j.outcome == Outcome::untested || j.outcome == Outcome::vacuous) return cell(reason_text(v, j));
  const std::string place = cell(place_text(v, worst->worst));
  if (j.outcome == Outcome::held) return place;
  const std::string cause = cause_text(v, j);
  return fmt::format("{}; {} of {} samples fail{}{}", place, j.failing, j.samples, cause.empty() ? "" : "; ",
                     cell(cause));
}

// As it stands in the console's report; a fence that the text cannot end.
std::string first_divergence(const Verdict& v) {
  const Judgement* first = v.first_divergence();
  if (!first) return "";
  std::string text = clean_text(divergence_text(v, *first));
  std::replace(text.begin(), text.end(), '`', '\'');
  return fmt::format("First divergence:\n\n```\n{}```\n\n", text);
}

std::string mark_of(const Judgement& j) {
  if (j.allowed) return "untested, allowed";
  return j.outcome == Outcome::held ? std::string("held") : fmt::format("**{}**", name_of(j.outcome));
}

}  // namespace

std::string github_annotations(std::span<const Verdict> verdicts, std::string_view workspace) {
  std::vector<Annotation> list;
  for (const Verdict& v : verdicts) {
    const Contract& contract = *v.contract;
    const std::string file = path_in(workspace, contract.path);
    const auto add = [&](std::string_view level, int line, const std::string& what, const std::string& message) {
      list.push_back({level, file, line, 0, contract.metadata.id + ": " + what, message});
    };
    if (!v.failure.empty()) add("error", 0, "the run ended early", v.failure);
    if (const std::string text = oracle_text(v); !text.empty()) add("error", 0, "the oracle is not finite", text);
    for (const Judgement& j : v.judgements) {
      if (j.outcome == Outcome::held || j.allowed) continue;
      // A run that ended early is told once, not for each that it did not come to.
      if (j.outcome == Outcome::untested && !v.failure.empty()) continue;
      add(j.outcome == Outcome::untested ? "warning" : "error", j.spec->where.line,
          fmt::format("{} is {}", j.spec->id, name_of(j.outcome)), j.spec->claim + '\n' + reason_text(v, j));
    }
    for (const NotCaptured& missing : v.captured_nothing)
      if (!missing.allowed) add("warning", missing.line, "not captured", missing.what);
    if (const std::string changed = changed_text(v); !changed.empty())
      add(v.planted.empty() ? "notice" : "warning", 0, "not the contract as it stands",
          changed.substr(0, changed.size() - 1));
  }
  return commands(std::move(list));
}

std::string github_annotations(std::string_view mistakes, std::string_view workspace) {
  std::vector<Annotation> list;
  std::istringstream lines{std::string(mistakes)};
  for (std::string line; std::getline(lines, line);) {
    list.push_back(placed(line));
    list.back().file = path_in(workspace, list.back().file);
  }
  return commands(std::move(list));
}

std::string github_summary(std::span<const Verdict> verdicts) {
  std::string text;
  std::size_t rows = 0, left_out = 0;
  for (const Verdict& v : verdicts) {
    text += fmt::format("### {}\n\n", cell(headline(v)));
    if (!v.failure.empty()) text += fmt::format("The run ended early: {}\n\n", cell(v.failure));
    if (const std::string oracle = oracle_text(v); !oracle.empty()) text += cell(oracle) + "\n\n";
    for (const std::string& fault : v.planted) text += fmt::format("Planted fault: {}\n\n", cell(fault));
    for (const auto& [key, value] : v.contract->overrides)
      text += fmt::format("Changed by --set: {}\n\n", cell(key + '=' + value));
    if (v.judgements.empty()) continue;
    text += "| outcome | falsifier | claim | worst | claimed | where |\n|---|---|---|---|---|---|\n";
    for (const Judgement& j : v.judgements) {
      if (++rows > most_rows) {
        ++left_out;
        continue;
      }
      const SiteResult* worst = j.worst();
      text += fmt::format("| {} | {} | {} | {} | {} | {} |\n", mark_of(j), cell(j.spec->id), cell(j.spec->claim),
                          worst ? fmt::format("{:.6g}", worst->worst.value) : "-",
                          cell(bound_text(worst ? worst->worst.bound : j.spec->bound)), where_text(v, j));
    }
    text += '\n';
    text += first_divergence(v);
  }
  if (left_out > 0) text += fmt::format("{} more falsifiers are in the JSON and the JUnit file.\n\n", left_out);
  return text;
}

std::string github_summary(std::string_view mistakes) {
  std::string text = "### moe-diag: nothing was computed: a contract or the command line is wrong\n\n";
  std::istringstream lines{std::string(mistakes)};
  for (std::string line; std::getline(lines, line);) text += fmt::format("- {}\n", cell(line));
  return text + '\n';
}

}  // namespace moe_diag
