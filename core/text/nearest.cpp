// SPDX-License-Identifier: MIT
#include "core/text/nearest.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>

#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::size_t longest_name = 64;      // longer names are not misspelt, they are something else
constexpr std::size_t most_candidates = 200;  // a contract with more lanes than this gets no suggestion
constexpr std::size_t most_listed = 40;

// Insertions, deletions, replacements and swaps of neighbours that turn a into b.
std::size_t distance(std::string_view a, std::string_view b) {
  std::vector<std::size_t> before(b.size() + 1), last(b.size() + 1), row(b.size() + 1);
  for (std::size_t j = 0; j <= b.size(); ++j) last[j] = j;
  for (std::size_t i = 1; i <= a.size(); ++i) {
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t replaced = last[j - 1] + (a[i - 1] == b[j - 1] ? 0 : 1);
      row[j] = std::min({last[j] + 1, row[j - 1] + 1, replaced});
      if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1]) row[j] = std::min(row[j], before[j - 2] + 1);
    }
    before.swap(last);
    last.swap(row);
  }
  return last[b.size()];
}

}  // namespace

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

std::optional<std::string> nearest(std::string_view name, const std::vector<std::string>& candidates) {
  if (name.empty() || name.size() > longest_name || candidates.size() > most_candidates) return std::nullopt;
  const std::string wanted = lower(name);
  std::optional<std::string> best;
  std::size_t least = std::max<std::size_t>(1, name.size() / 3) + 1;
  for (const std::string& c : candidates) {
    if (c.size() > longest_name) continue;
    // What was cut short is as good as spelt right.
    const bool is_start = wanted.size() >= 3 && lower(c).substr(0, wanted.size()) == wanted;
    const std::size_t d = is_start ? 0 : distance(wanted, lower(c));
    if (d < least) {
      least = d;
      best = c;
    }
  }
  return best;
}

std::string listed(const std::vector<std::string>& names) {
  std::string out;
  for (std::size_t i = 0; i < names.size(); ++i) {
    if (i == most_listed) return out + fmt::format(" and {} more", names.size() - i);
    out += (i == 0 ? "" : ", ") + shown(names[i]);
  }
  return out;
}

std::string unknown(std::string_view what, std::string_view name, const std::vector<std::string>& known) {
  std::string out = fmt::format("unknown {} '{}'", what, shown(name));
  const auto close = nearest(name, known);
  out += close ? fmt::format(", did you mean '{}'?", *close) : ".";
  return out + (known.empty() ? fmt::format(" There is no {} here", what) : " Known: " + listed(known));
}

}  // namespace moe_diag
