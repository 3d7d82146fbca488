// SPDX-License-Identifier: MIT
#include "core/compare/footprint.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/ops/operator.hpp"
#include "core/ops/step_case.hpp"

namespace moe_diag {
namespace {

constexpr double small_beside_worst = 0.03;  // outliers are off by more than others
constexpr std::size_t most_ranges = 4;       // in a text
constexpr double nearly_all = 0.7;           // of a range is wrong
constexpr double chance = 1e-4;              // of a run of columns, below which they are not right by chance

// The step between columns that are spread evenly, with few missing; 0 when they are not.
std::int64_t stride_of(const std::vector<std::int64_t>& columns) {
  if (columns.size() < 4) return 0;
  std::int64_t stride = 0;
  for (std::int64_t column : columns) stride = std::gcd(stride, column - columns.front());
  const std::int64_t places = (columns.back() - columns.front()) / std::max<std::int64_t>(stride, 1) + 1;
  return stride > 1 && static_cast<double>(columns.size()) >= nearly_all * static_cast<double>(places) ? stride : 0;
}

// The same where only a number of `all` between two others ends a range.
std::vector<Range> ranges_among(const std::vector<int>& numbers, const std::vector<int>& all) {
  std::vector<Range> ranges;
  std::size_t next = 0;  // in `all`
  for (const int number : numbers) {
    const bool follows = next < all.size() && all[next] == number;
    if (!ranges.empty() && follows)
      ranges.back().second = number;
    else
      ranges.push_back({number, number});
    next = static_cast<std::size_t>(std::upper_bound(all.begin(), all.end(), number) - all.begin());
  }
  return ranges;
}

std::string positions_text(const Footprint& print) {
  const std::vector<int>&wrong = print.positions, &all = print.compared_positions;
  if (all.size() == 1) return fmt::format("position {}, the only one compared", all[0]);
  if (wrong.size() == all.size()) return fmt::format("all {} positions compared, {}", all.size(), numbers_text(all));
  if (ranges_of(wrong).size() > most_ranges)
    return fmt::format("{} of the {} positions compared, {} to {}", wrong.size(), all.size(), wrong.front(),
                       wrong.back());
  return fmt::format("position{} {}", wrong.size() == 1 ? "" : "s", numbers_text(wrong));
}

// Experts without rows between those that are wrong do not end a range, and are told.
std::string experts_text(const Footprint& print) {
  std::vector<int> wrong;
  for (const Footprint::Part& part : print.experts) wrong.push_back(part.expert);
  const bool whole = std::all_of(print.experts.begin(), print.experts.end(),
                                 [](const auto& part) { return part.rows == part.all_rows; });
  if (wrong.size() == print.ran.size() && wrong.size() > 1)
    return fmt::format("all {} experts that ran{}", wrong.size(), whole ? "" : ", some of their rows");
  const std::vector<Range> ranges = ranges_among(wrong, print.ran);
  if (ranges.size() > most_ranges) return fmt::format("{} of the {} experts that ran", wrong.size(), print.ran.size());
  std::vector<int> idle;
  for (const auto& [first, last] : ranges)
    for (auto id = static_cast<int>(first); id <= last; ++id)
      if (!std::binary_search(wrong.begin(), wrong.end(), id)) idle.push_back(id);
  std::string text = fmt::format("expert{} {}", wrong.size() == 1 ? "" : "s", ranges_text(ranges));
  if (!idle.empty() && idle.size() <= most_ranges) text += fmt::format(" ({} did not run)", numbers_text(idle));
  if (idle.size() > most_ranges) text += fmt::format(" ({} of them did not run)", idle.size());
  if (wrong.size() < print.ran.size()) text += " only";
  return whole ? text + (wrong.size() == 1 ? ", all its rows" : ", all their rows") : text;
}

// "attn_q" of "blk.2.attn_q.weight".
std::string short_name(const std::string& tensor) {
  std::string_view name = tensor;
  if (name.starts_with("blk.")) name.remove_prefix(std::min(name.find('.', 4) + 1, name.size()));
  if (name.ends_with(".weight")) name.remove_suffix(std::string_view(".weight").size());
  return std::string(name);
}

}  // namespace

void FootprintMaker::add(const StepCase& c, const std::vector<StepUnit>& units) {
  step_ = c.step;
  if (is(c.stage, Role::key_values)) keys_ = c.a.shape[2];
  for (const StepUnit& unit : units) {
    compared_ += unit.size;
    positions_.insert(c.first_position + unit.row);
    Footprint::Part& part = experts_[unit.expert];
    part.expert = unit.expert;
    ++part.all_rows;
    if (!unit.fails) continue;
    ++part.rows;
    wrong_positions_.insert(c.first_position + unit.row);
    wrong_parts_.insert(unit.part);
    add_wrong(c, unit);
  }
}

void FootprintMaker::add_choice(int position, int flips, int used) {
  is_choice_ = true;
  compared_ += used;
  wrong_ += flips;
  positions_.insert(position);
  if (flips > 0) wrong_positions_.insert(position);
}

void FootprintMaker::add_wrong(const StepCase& c, const StepUnit& unit) {
  constexpr double barely = 10;
  const std::int64_t width = unit.expert >= 0 ? unit.size : c.a.shape.row();
  if (columns_.empty()) {
    columns_.resize(static_cast<std::size_t>(width));
    failing_.resize(columns_.size());
  }
  const std::vector<double> off = errors_of_elements(c, unit);
  double worst = 0;
  for (const double x : off)
    if (std::isfinite(x)) worst = std::max(worst, x);
  for (std::int64_t i = 0; i < unit.size; ++i) {
    const double x = off[static_cast<std::size_t>(i)];
    const auto at = static_cast<std::size_t>(unit.in_a(i) % width);
    ++failing_[at];
    if (x <= element_error) continue;  // false for NaN
    ++off_;
    barely_off_ += x < barely * element_error;
    const bool is_wrong = !(x <= small_beside_worst * worst);
    wrong_ += is_wrong;
    columns_[at] = std::max(columns_[at], is_wrong ? Column::wrong : Column::unclear);
  }
}

std::vector<std::int64_t> FootprintMaker::wrong_columns() const {
  std::vector<std::int64_t> columns;
  for (std::size_t i = 0; i < columns_.size(); ++i)
    if (columns_[i] == Column::wrong) columns.push_back(static_cast<std::int64_t>(i));
  return columns;
}

// Whether columns [first, end) may well be wrong like their neighbours, though nothing shows it. Differences near 0 are
// about as frequent as those a little off it: that tells how many of the wrong elements are within their tolerance.
bool FootprintMaker::is_by_chance(std::int64_t first, std::int64_t end) const {
  const double hidden = static_cast<double>(barely_off_) / 9;  // elements, beside off_ that show
  const double within = std::log(hidden / (hidden + static_cast<double>(off_)));
  double likely = 0;  // logarithm
  for (std::int64_t i = first; i < end; ++i) {
    if (keys_ > 0 && i % keys_ > *positions_.rbegin()) continue;  // a key that no position sees
    const auto at = static_cast<std::size_t>(i);
    if (failing_[at] == 0) return false;  // right in rows that are right
    if (columns_[at] == Column::right) likely += within * failing_[at];
    if (!(likely >= std::log(chance))) return false;
  }
  return true;
}

// How many of columns [first, last] are compared at any position.
std::int64_t FootprintMaker::seen(Range columns) const {
  if (keys_ == 0) return columns.second - columns.first + 1;
  const std::int64_t last_key = *positions_.rbegin();
  const auto before = [&](std::int64_t end) {
    return end / keys_ * (last_key + 1) + std::min(end % keys_, last_key + 1);
  };
  return before(columns.second + 1) - before(columns.first);
}

// Runs of wrong columns, joined where what is between them is right by chance and nearly all of the whole is wrong.
std::vector<Range> FootprintMaker::ranges() const {
  struct Run {
    Range range;
    std::int64_t wrong;
    bool follows;  // nothing but chance is between it and the one before
  };
  std::vector<Run> runs;
  const auto is_nearly_all = [&](Range range, std::int64_t wrong) {
    return static_cast<double>(wrong) >= nearly_all * static_cast<double>(seen(range));
  };
  for (const std::int64_t column : wrong_columns()) {
    runs.push_back({{column, column}, 1, !runs.empty() && is_by_chance(runs.back().range.second + 1, column)});
    while (runs.size() > 1 && runs.back().follows) {
      const Run last = runs.back();
      Run& before = runs[runs.size() - 2];
      const Range both{before.range.first, last.range.second};
      if (!is_nearly_all(both, before.wrong + last.wrong)) break;
      before.range = both;
      before.wrong += last.wrong;
      runs.pop_back();
    }
  }
  const auto width = static_cast<std::int64_t>(columns_.size());
  std::vector<Range> ranges;
  for (const Run& run : runs) ranges.push_back(run.range);
  if (const Range whole{0, runs.front().range.second};
      is_nearly_all(whole, runs.front().wrong) && is_by_chance(0, runs.front().range.first))
    ranges.front() = whole;
  if (const Range whole{ranges.back().first, width - 1};
      is_nearly_all(whole, runs.back().wrong) && is_by_chance(runs.back().range.second + 1, width))
    ranges.back() = whole;
  return ranges;
}

std::vector<Footprint::OfTensor> FootprintMaker::tensors(const std::vector<Range>& columns) const {
  std::vector<Footprint::OfTensor> tensors;
  if (!step_) return tensors;
  const bool side_by_side = operator_of(*step_).weights == WeightRows::all;
  const auto width = static_cast<std::int64_t>(columns_.size());
  std::int64_t first = 0;
  for (std::size_t part = 0; part < step_->weights.size(); ++part) {
    const Weight& weight = *step_->weights[part];
    const Range all{first, side_by_side ? first + weight.rows - 1 : width - 1};
    if (side_by_side) first += weight.rows;
    if (side_by_side && wrong_parts_.count(part) == 0) continue;
    Footprint::OfTensor tensor{std::string(weight.name), std::string(name_of(weight.type)), all, {}};
    for (const Range& range : columns)
      if (range.first <= all.second && range.second >= all.first)
        tensor.columns.push_back({std::max(range.first, all.first), std::min(range.second, all.second)});
    tensors.push_back(std::move(tensor));
  }
  return tensors;
}

// "key 3 of all heads", where the same keys are wrong in some heads; empty where they are not.
std::string FootprintMaker::keys_text(const std::vector<std::int64_t>& columns) const {
  std::set<int> heads, keys;
  for (const std::int64_t column : columns) {
    heads.insert(static_cast<int>(column / keys_));
    keys.insert(static_cast<int>(column % keys_));
  }
  if (heads.size() * keys.size() != columns.size()) return "";
  const std::string of_heads = numbers_text({heads.begin(), heads.end()});
  return fmt::format("key{} {} of {}", keys.size() == 1 ? "" : "s", numbers_text({keys.begin(), keys.end()}),
                     static_cast<std::int64_t>(heads.size() * keys_) == std::ssize(columns_) ? "all heads"
                     : heads.size() == 1                                                     ? "head " + of_heads
                                                                                             : "heads " + of_heads);
}

std::string FootprintMaker::columns_text(const Footprint& print) const {
  const std::vector<std::int64_t> columns = wrong_columns();
  const auto width = static_cast<std::int64_t>(columns_.size());
  if (print.columns == std::vector<Range>{{0, width - 1}}) return "all columns";
  if (std::string keys = keys_ > 0 ? keys_text(columns) : ""; !keys.empty()) return keys;
  std::string text = "columns " + ranges_text(print.columns);
  if (columns.size() == 1)
    text = fmt::format("column {}", columns[0]);
  else if (const std::int64_t stride = stride_of(columns))
    text = fmt::format("every {}th column from {} to {}", stride, columns.front(), columns.back());
  else if (print.columns.size() > most_ranges)
    text = fmt::format("{} columns between {} and {}", columns.size(), columns.front(), columns.back());
  if (operator_of(*step_).weights != WeightRows::all || step_->weights.size() == 1) return text;
  std::string whole, part;
  for (const Footprint::OfTensor& tensor : print.tensors) {
    std::string& names = tensor.columns == std::vector<Range>{tensor.all} ? whole : part;
    names += (names.empty() ? "" : ", ") + short_name(tensor.name);
  }
  if (!whole.empty()) whole = "all of " + whole;
  if (!part.empty()) part = "part of " + part;
  return fmt::format("{} ({}{}{})", text, whole, whole.empty() || part.empty() ? "" : "; ", part);
}

Footprint FootprintMaker::made() const {
  Footprint print;
  print.wrong = wrong_;
  print.compared = compared_;
  print.positions.assign(wrong_positions_.begin(), wrong_positions_.end());
  print.compared_positions.assign(positions_.begin(), positions_.end());
  for (const auto& [id, part] : experts_) {
    if (id < 0) continue;
    print.ran.push_back(id);
    if (part.rows > 0) print.experts.push_back(part);
  }
  if (print.positions.empty()) return print;
  if (is_choice_) {
    print.text = fmt::format("{} of {} experts chosen, at {}", wrong_, compared_, positions_text(print));
    return print;
  }
  print.columns = ranges();
  print.tensors = tensors(print.columns);
  print.text = fmt::format("{} of {}", columns_text(print), positions_text(print));
  if (!print.ran.empty()) print.text = fmt::format("{}; {}", experts_text(print), print.text);
  return print;
}

}  // namespace moe_diag
