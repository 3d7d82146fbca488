// SPDX-License-Identifier: MIT
#include "core/recording/call_table.hpp"

#include <algorithm>

namespace moe_diag {
namespace {

// Last rows of a part that the arrays of a site have; none: the part does not say.
std::optional<int> said_of(const CallPart& part, Site site) {
  for (const int layer : {site.layer, every_layer})
    if (const auto found = part.kept_of.find({site.stage.index(), layer}); found != part.kept_of.end())
      return found->second;
  return part.kept;
}

}  // namespace

void CallTable::add(RecordedCall call) {
  places_.push_back({static_cast<int>(parts_.size()), 0});
  parts_.push_back({lines(), call.rows, {}, {}});
  line_parts_.push_back(static_cast<int>(parts_.size()));
  paddings_.push_back(0);
  graph_sizes_.push_back(call.graph_size);
  calls_.push_back(std::move(call));
}

std::int64_t CallTable::rows_of_line(int line) const {
  std::int64_t rows = 0;
  for (int p = first_part(line); p < first_part(line + 1); ++p) rows += part(p).rows;
  return rows;
}

std::optional<int> CallTable::rows_said(int part, Site site) const {
  return said_of(parts_[static_cast<std::size_t>(part)], site);
}

std::optional<std::int64_t> CallTable::rows_said_of_line(int line, Site site) const {
  bool is_said = false;
  std::int64_t rows = 0;
  for (int p = first_part(line); p < first_part(line + 1); ++p) {
    const auto said = rows_said(p, site);
    is_said |= said.has_value();
    rows += said.value_or(part(p).rows);
  }
  return is_said ? std::optional(rows) : std::nullopt;
}

std::vector<PartRows> CallTable::rows_of(Site site) const {
  std::vector<PartRows> rows;
  rows.reserve(parts_.size());
  std::int64_t start = 0;
  for (const CallPart& part : parts_) {
    rows.push_back({start, said_of(part, site).value_or(part.rows)});
    start += rows.back().count;
  }
  return rows;
}

void CallTable::cut(int lines) {
  const auto parts = static_cast<std::size_t>(first_part(lines));
  const auto behind = std::find_if(places_.begin(), places_.end(),
                                   [&](const Place& place) { return static_cast<std::size_t>(place.part) >= parts; });
  const auto calls = behind - places_.begin();
  places_.erase(behind, places_.end());
  calls_.erase(calls_.begin() + calls, calls_.end());
  parts_.resize(parts);
  line_parts_.resize(static_cast<std::size_t>(lines) + 1);
  paddings_.resize(static_cast<std::size_t>(lines));
  graph_sizes_.resize(static_cast<std::size_t>(lines));
}

}  // namespace moe_diag
