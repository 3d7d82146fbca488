// SPDX-License-Identifier: MIT
#include "core/contract/selection.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <stdexcept>

#include "core/arch/architecture.hpp"
#include "core/text/glob.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr int largest_index = 1'000'000'000;

std::vector<std::string> names_of(Stages stages) {
  std::vector<std::string> names;
  for (const Stage stage : stages) names.emplace_back(name_of(stage));
  return names;
}

std::string forms(bool allow_last) {
  return fmt::format(
      "expected all, {}7, -1 (the last), 0..48 (48 excluded), 0..=47, 3.. (to the end), or a list of these",
      allow_last ? "last, " : "");
}

std::optional<int> parse_index(std::string_view text) {
  const std::string_view digits = text.substr(!text.empty() && text.front() == '-' ? 1 : 0);
  if (digits.empty() || (digits.size() > 1 && digits.front() == '0')) return std::nullopt;  // 010 is 8 to some readers
  int value = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || stop != text.data() + text.size()) return std::nullopt;
  if (value > largest_index || value < -largest_index) return std::nullopt;
  return value;
}

using Part = IndexSelection::Part;

// Known to be empty whatever the count is: both ends are counted from the same side.
bool is_empty(const Part& p) {
  if (p.single || p.open_end || (p.first < 0) != (p.end < 0)) return false;
  return p.inclusive ? p.first > p.end : p.first >= p.end;
}

std::string text_of(const Part& p) {
  if (p.single) return std::to_string(p.first);
  if (p.open_end) return p.first == 0 ? "all" : fmt::format("{}..", p.first);
  return fmt::format("{}..{}{}", p.first, p.inclusive ? "=" : "", p.end);
}

}  // namespace

StagePick pick_stages(std::string_view word, Stages stages) {
  const std::string wanted = lower(word);
  for (const Stage stage : stages) {
    const StageInfo& s = info(stage);
    if (wanted == s.name || (!s.alias.empty() && wanted == s.alias)) return {{stage}, true};
  }
  StagePick pick;
  const bool is_glob = wanted.find_first_of("*?") != std::string::npos;
  for (const Stage stage : stages)
    if (wanted == "all" ||
        (is_glob && (glob_matches(wanted, info(stage).name) || glob_matches(wanted, info(stage).alias))))
      pick.stages.push_back(stage);
  if (!pick.stages.empty()) return pick;
  if (is_glob)
    throw std::invalid_argument(
        fmt::format("no stage is called like '{}'. Known: {}", shown(word), listed(names_of(stages))));
  if (all_stages().find(wanted))
    throw std::invalid_argument(
        fmt::format("the model's architecture has no stage '{}'. It has: {}", shown(word), listed(names_of(stages))));
  throw std::invalid_argument(unknown("stage", word, names_of(stages)));
}

void put_in_forward_order(std::vector<Stage>& stages) {
  std::sort(stages.begin(), stages.end(), comes_before);
  stages.erase(std::unique(stages.begin(), stages.end()), stages.end());
}

IndexSelection IndexSelection::parse(std::string_view text, bool allow_last) {
  const std::string word = lower(text);
  if (word == "all") return all();
  if (word == "last") {
    if (allow_last) return IndexSelection("last", {Part{.first = -1, .single = true}});
    throw std::invalid_argument("'last' is for positions: the last layer is -1");
  }
  const auto refuse = [&](const std::string& why) {
    throw std::invalid_argument(fmt::format("'{}' {}: {}", shown(text), why, forms(allow_last)));
  };
  Part part;
  const std::size_t dots = text.find("..");
  const auto first = parse_index(text.substr(0, dots));
  if (!first) refuse("is not a selection");
  part.first = *first;
  if (dots == std::string_view::npos) {
    part.single = true;
  } else if (dots + 2 == text.size()) {
    part.open_end = true;
  } else {
    part.inclusive = text[dots + 2] == '=';
    const auto end = parse_index(text.substr(dots + (part.inclusive ? 3 : 2)));
    if (!end) refuse("is not a selection");
    part.end = *end;
    if (is_empty(part)) refuse("is empty");
  }
  return IndexSelection(std::string(text), {part});
}

void IndexSelection::append(const IndexSelection& other) {
  text_ += ", " + other.text_;
  parts_.insert(parts_.end(), other.parts_.begin(), other.parts_.end());
}

std::vector<int> IndexSelection::resolve(int count) const {
  std::vector<int> picked;
  for (const Part& p : parts_) {
    const auto from_start = [count](int i) { return i < 0 ? count + i : i; };
    const int first = from_start(p.first);
    int end = count;
    if (p.single)
      end = first + 1;
    else if (!p.open_end)
      end = from_start(p.end) + (p.inclusive ? 1 : 0);
    if (first < 0 || first >= count || end > count)
      throw std::out_of_range(
          count > 0 ? fmt::format("{} reaches outside: there are {}, numbered 0 to {}", text_of(p), count, count - 1)
                    : fmt::format("{} reaches outside: there are none", text_of(p)));
    if (end <= first) throw std::out_of_range(fmt::format("{} is empty when there are {}", text_of(p), count));
    for (int i = first; i < end; ++i) picked.push_back(i);
  }
  std::sort(picked.begin(), picked.end());
  picked.erase(std::unique(picked.begin(), picked.end()), picked.end());
  return picked;
}

std::optional<bool> IndexSelection::contains(int index) const {
  bool depends = false;
  for (const Part& p : parts_) {
    if (p.first < 0 || (!p.single && !p.open_end && p.end < 0)) {
      depends = true;
      continue;
    }
    const int end = p.single ? p.first : p.inclusive ? p.end : p.end - 1;
    if (index >= p.first && (p.open_end || index <= end)) return true;
  }
  if (depends) return std::nullopt;
  return false;
}

std::optional<int> IndexSelection::highest() const {
  int highest = -1;
  for (const Part& p : parts_) {
    if (p.open_end || p.first < 0 || (!p.single && p.end < 0)) return std::nullopt;
    highest = std::max(highest, p.single ? p.first : p.inclusive ? p.end : p.end - 1);
  }
  return highest;
}

}  // namespace moe_diag
