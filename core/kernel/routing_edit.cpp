// SPDX-License-Identifier: MIT
#include "core/kernel/routing_edit.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <vector>

#include "core/api/error.hpp"

namespace moe_diag {
namespace {

std::string choose_one(std::size_t used, host::Values& ids) {
  for (std::size_t i = used; i < ids.size(); ++i) ids[i] = ids[i % used];
  const std::vector<int> chosen(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(used));
  return fmt::format("all rows choose experts {}", fmt::join(chosen, ", "));
}

// The expert that most rows chose: where it is missing, there is a hole among the others.
std::string choose_without(std::size_t used, int experts, host::Values& ids) {
  if (static_cast<std::size_t>(experts) <= used)
    throw Error(ErrorKind::usage,
                fmt::format("--routing none: expected a model with more experts than a row chooses, found {} of {}",
                            used, experts));
  std::vector<int> times(static_cast<std::size_t>(experts));
  for (const double id : ids)
    if (id >= 0 && id < experts) ++times[static_cast<std::size_t>(id)];
  const auto missing = static_cast<int>(std::max_element(times.begin(), times.end()) - times.begin());
  for (std::size_t row = 0; row < ids.size(); row += used) {
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(row), last = first + static_cast<std::ptrdiff_t>(used);
    const auto slot = std::find(first, last, missing);
    if (slot == last) continue;
    int other = 0;
    while (other == missing || std::find(first, last, other) != last) ++other;
    *slot = other;
  }
  return fmt::format("no row chooses expert {}: those that did choose the first expert they had not", missing);
}

// As where experts are spread over devices and every token went to one of them: the first quarter of all experts, as
// many at least as a row chooses.
std::string choose_of_one_rank(std::size_t used, int experts, host::Values& ids) {
  const int own = std::max((experts + 3) / 4, static_cast<int>(used));
  if (own >= experts)
    throw Error(ErrorKind::usage, fmt::format("--routing rank: expected a model with more experts than a row chooses, "
                                              "found {} of {}",
                                              used, experts));
  for (std::size_t row = 0; row < ids.size(); row += used) {
    const auto first = ids.begin() + static_cast<std::ptrdiff_t>(row);
    for (std::size_t slot = 0; slot < used; ++slot) {
      const auto before = first + static_cast<std::ptrdiff_t>(slot);
      int id = static_cast<int>(*before) % own;
      while (std::find(first, before, id) != before) id = (id + 1) % own;
      *before = id;
    }
  }
  return fmt::format("all rows choose among experts 0 to {}: those of one rank", own - 1);
}

}  // namespace

std::string edit_routing(CaseRouting routing, Stage choice, int experts, SpanValues& values) {
  if (routing == CaseRouting::model) return "";
  host::Values& ids = values.of.at(choice);
  const std::size_t used = ids.size() / values.positions.size();
  if (routing == CaseRouting::rank) return choose_of_one_rank(used, experts, ids);
  return routing == CaseRouting::one ? choose_one(used, ids) : choose_without(used, experts, ids);
}

}  // namespace moe_diag
