// SPDX-License-Identifier: MIT
#include "core/kernel/case_footprint.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <tuple>
#include <utility>

#include "core/ops/step_case.hpp"
#include "core/ops/values.hpp"
#include "core/report/text.hpp"

namespace moe_diag {
namespace {

constexpr double element_allowed =
    element_error / failing_error;  // beyond which an element is wrong, in allowed errors

// The distance at which an element of a vector is wrong: beyond its own error, and not small beside
// the worst of the vector.
struct ElementBounds {
  double rms = 0, allowed = 0, least = 0;

  bool is_wrong(double found, double expected) const {
    const double off = std::fabs(found - expected);
    return !(off <= std::max(least, element_allowed * allowed * std::max(rms, std::fabs(expected))));
  }
};

ElementBounds bounds_of(const JudgedCase& judged, const JudgedVector& v, std::int64_t at, std::int64_t width) {
  constexpr double small = 1.0 / 40;  // beside the worst
  const Tensor a = judged.out.tensor(), b = judged.expected.tensor();
  double squares = 0, worst = 0;
  for (std::int64_t i = at; i < at + width; ++i) {
    const double expected = value_at(b, i), off = std::fabs(value_at(a, i) - expected);
    squares += expected * expected;
    if (std::isfinite(off)) worst = std::max(worst, off);
  }
  return {std::sqrt(squares / static_cast<double>(width)), v.allowed, small * worst};
}

// By column: whether it is wrong in a failing vector. Counts what is not finite, and finds values that are not 0.
std::vector<bool> wrong_columns(const JudgedCase& judged, std::int64_t slots, CaseFootprint& print) {
  const Tensor a = judged.out.tensor(), b = judged.expected.tensor();
  const std::int64_t width = print.all_columns;
  std::vector<bool> wrong(static_cast<std::size_t>(width));
  for (const JudgedVector& v : judged.vectors) {
    if (!v.fails) continue;
    print.nonfinite += v.nonfinite;
    const std::int64_t at = (v.row * slots + std::max(v.slot, 0)) * width;
    const ElementBounds bounds = bounds_of(judged, v, at, width);
    for (std::int64_t i = 0; i < width; ++i) {
      const double found = value_at(a, at + i);
      if (!bounds.is_wrong(found, value_at(b, at + i))) continue;
      wrong[static_cast<std::size_t>(i)] = true;
      print.only_zeros = print.only_zeros && found == 0;
    }
  }
  return wrong;
}

// Runs of wrong columns. Those that are right by chance within a run do not end it: they are few of it.
std::vector<Range> runs_of(const std::vector<bool>& wrong) {
  constexpr double mostly = 0.85;
  std::vector<std::pair<Range, std::int64_t>> runs;  // with the number of wrong columns
  for (std::size_t i = 0; i < wrong.size(); ++i) {
    if (!wrong[i]) continue;
    const auto column = static_cast<std::int64_t>(i);
    if (!runs.empty() && runs.back().first.second == column - 1) {
      ++runs.back().second;
      runs.back().first.second = column;
    } else {
      runs.push_back({{column, column}, 1});
    }
  }
  std::vector<std::pair<Range, std::int64_t>> joined;
  for (const auto& run : runs) {
    if (!joined.empty()) {
      auto& [range, count] = joined.back();
      const auto length = static_cast<double>(run.first.second - range.first + 1);
      const std::int64_t gap = run.first.first - range.second - 1;
      if (static_cast<double>(count + run.second) >= mostly * length && gap <= 2 + count / 16) {
        range.second = run.first.second;
        count += run.second;
        continue;
      }
    }
    joined.push_back(run);
  }
  std::vector<Range> ranges;
  for (const auto& [range, count] : joined) ranges.push_back(range);
  return ranges;
}

// Experts of a vector: that of its slot, or all that its row chose.
std::set<int> experts_of(const CaseIndex& index, const JudgedCase& judged, const JudgedVector& v) {
  if (v.expert >= 0) return {v.expert};
  std::set<int> experts;
  for (int slot = 0; slot < index.used; ++slot)
    experts.insert(judged.choice.tensor().as<std::int32_t>()[v.row * index.used + slot]);
  return experts;
}

// Experts that all failing vectors have and no other one has. Of vectors that fail for another reason, one of the
// model's experts separates them by chance about as often as `by_chance` says.
std::vector<int> separating_experts(const CaseIndex& index, const JudgedCase& judged) {
  constexpr double unlikely = 1e-3;
  std::map<int, std::pair<int, int>> seen;  // failing vectors and others that have it
  int failing = 0, others = 0;
  for (const JudgedVector& v : judged.vectors) {
    (v.fails ? failing : others) += 1;
    for (const int expert : experts_of(index, judged, v)) (v.fails ? seen[expert].first : seen[expert].second) += 1;
  }
  if (failing == 0 || others == 0) return {};
  const double share = (index.of_slots ? 1.0 : index.used) / index.experts;
  const double by_chance = index.experts * std::pow(share, failing) * std::pow(1 - share, others);
  if (!(by_chance < unlikely)) return {};
  std::vector<int> experts;
  for (const auto& [expert, count] : seen)
    if (count.first == failing && count.second == 0) experts.push_back(expert);
  return experts;
}

std::string counts_text(const std::vector<int>& counts) {
  if (counts.size() == 1) return fmt::format("{}", counts[0]);
  const std::vector<int> first(counts.begin(), counts.end() - 1);
  return fmt::format("{} and {}", fmt::join(first, ", "), counts.back());
}

// Whether a row that fails in `wrong` is there and right in `right`.
bool shows_same_row(const JudgedCase& wrong, const JudgedCase& right) {
  return std::any_of(wrong.footprint.rows.begin(), wrong.footprint.rows.end(),
                     [&](int row) { return row < right.of->rows; });
}

std::string row_count_text(const std::vector<const JudgedCase*>& group) {
  std::vector<int> wrong, right;
  bool witnessed = false;
  for (const JudgedCase* c : group) {
    (c->outcome == CaseOutcome::falsified ? wrong : right).push_back(c->of->rows);
    if (c->outcome != CaseOutcome::falsified) continue;
    for (const JudgedCase* other : group)
      witnessed = witnessed || (other->outcome == CaseOutcome::held && shows_same_row(*c, *other));
  }
  if (wrong.empty() || right.empty() || !witnessed) return "";
  const std::string counts = fmt::format("(wrong at {}, right at {})", counts_text(wrong), counts_text(right));
  if (wrong.back() < right.front()) return fmt::format("wrong only below {} rows {}", right.front(), counts);
  if (right.back() < wrong.front()) return fmt::format("wrong only from {} rows on {}", wrong.front(), counts);
  return fmt::format("wrong only at some numbers of rows {}", counts);
}

}  // namespace

CaseFootprint footprint_of(const CaseIndex& index, const JudgedCase& judged) {
  CaseFootprint print;
  print.only_zeros = true;
  const std::int64_t slots = index.of_slots ? index.used : 1;
  print.all_columns = judged.expected.shape.row() / slots;
  const std::vector<bool> wrong = wrong_columns(judged, slots, print);
  print.wrong_columns = std::count(wrong.begin(), wrong.end(), true);
  print.columns = runs_of(wrong);
  for (const JudgedVector& v : judged.vectors)
    if (v.fails && (print.rows.empty() || print.rows.back() != v.row)) print.rows.push_back(v.row);
  if (!index.choice.empty()) print.experts = separating_experts(index, judged);
  return print;
}

std::string rows_text(const CaseFootprint& footprint, int rows) {
  if (static_cast<int>(footprint.rows.size()) == rows)
    return rows == 1 ? "its only row" : fmt::format("all {} rows", rows);
  return fmt::format("row{} {} of {}", footprint.rows.size() == 1 ? "" : "s", numbers_text(footprint.rows), rows);
}

std::string columns_text(const CaseFootprint& print) {
  constexpr std::size_t most_ranges = 4;
  if (print.wrong_columns == 0) return "";
  const std::string zeros = print.only_zeros ? ", where 0 was written" : "";
  const bool all = print.columns.size() == 1 && print.columns[0] == Range{0, print.all_columns - 1};
  if (all) return fmt::format("all {} columns{}", print.all_columns, zeros);
  if (print.columns.size() <= most_ranges)
    return fmt::format("column{} {} of {}{}", print.wrong_columns == 1 ? "" : "s", ranges_text(print.columns),
                       print.all_columns, zeros);
  return fmt::format("{} of {} columns, from {} to {}{}", print.wrong_columns, print.all_columns,
                     print.columns.front().first, print.columns.back().second, zeros);
}

std::string experts_text(const CaseIndex& index, const CaseFootprint& print) {
  if (print.experts.empty()) return "";
  const bool one = print.experts.size() == 1;
  const std::string who = fmt::format("expert{} {}", one ? "" : "s", numbers_text(print.experts));
  if (index.of_slots) return fmt::format("{}: all of its slots are wrong, and no other slot is", who);
  return fmt::format("{}: all rows that fail chose {}, and no other row did", who, one ? "it" : "them");
}

std::vector<std::string> row_count_texts(const std::vector<JudgedCase>& cases) {
  std::map<std::tuple<int, CaseRouting, int>, std::vector<const JudgedCase*>> groups;  // of the same rows
  for (const JudgedCase& c : cases)
    if (c.outcome == CaseOutcome::held || c.outcome == CaseOutcome::falsified)
      groups[{c.of->layer, c.of->routing, c.of->first}].push_back(&c);
  std::vector<std::string> texts;
  for (auto& [key, group] : groups) {
    std::sort(group.begin(), group.end(),
              [](const JudgedCase* x, const JudgedCase* y) { return x->of->rows < y->of->rows; });
    const std::string text = row_count_text(group);
    if (text.empty()) continue;
    const auto [layer, routing, first] = key;
    const std::string where = layer < 0 ? "" : fmt::format("layer {}, ", layer);
    const std::string cached =
        first == 0 ? "" : fmt::format(", {} cached", counted(static_cast<std::size_t>(first), "position"));
    texts.push_back(fmt::format("{}routing {}{}: {}", where, name_of(routing), cached, text));
  }
  return texts;
}

}  // namespace moe_diag
