// SPDX-License-Identifier: MIT
#include "core/recording/name_pattern.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/recording/strict_json.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

constexpr std::string_view any = "*";
const std::vector<std::string> known_variables{"layer", "call", "request", "tp", "ep", "n"};

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

NamePattern::NamePattern(std::string_view text, const std::string& where) {
  while (!text.empty()) {
    const std::size_t plain = std::min(text.find_first_of("{}*"), text.size());
    if (plain > 0) pieces_.push_back({std::string(text.substr(0, plain)), ""});
    text.remove_prefix(plain);
    if (text.empty()) break;
    const std::size_t end = text.front() == '*' ? 0 : text.find('}');
    if (text.front() == '}' || end == std::string_view::npos)
      refuse_recording(
          fmt::format("{}: a brace without its other half, expected {{layer}} or another variable", where));
    const std::string variable(text.front() == '*' ? any : text.substr(1, end - 1));
    if (variable != any && std::find(known_variables.begin(), known_variables.end(), variable) == known_variables.end())
      refuse_recording(fmt::format("{}: {}", where, unknown("variable", variable, known_variables)));
    has_repeats_ |= variable != any && has(variable);
    pieces_.push_back({"", variable});
    text.remove_prefix(end + 1);
  }
}

bool NamePattern::has(std::string_view variable) const {
  return std::any_of(pieces_.begin(), pieces_.end(), [&](const Piece& piece) { return piece.variable == variable; });
}

std::optional<NamePattern::Variables> NamePattern::match(std::string_view name, Variables known) const {
  Failed failed;
  return match_from(0, name, known, failed) ? std::optional(std::move(known)) : std::nullopt;
}

// The longest text that a variable may stand for is tried first.
bool NamePattern::match_from(std::size_t at, std::string_view name, Variables& variables, Failed& failed) const {
  if (at == pieces_.size()) return name.empty();
  if (failed.count({at, name.size()}) > 0) return false;
  const auto& [literal, variable] = pieces_[at];
  const auto rest = [&](std::size_t length) { return match_from(at + 1, name.substr(length), variables, failed); };
  if (variable.empty()) return name.starts_with(literal) && rest(literal.size());
  const auto fixed = variables.find(variable);
  if (fixed != variables.end()) return name.starts_with(fixed->second) && rest(fixed->second.size());
  const bool takes_all = variable == any || variable == "request";
  std::size_t length = 0;
  while (length < name.size() && (takes_all ? name[length] != '/' : is_digit(name[length]))) ++length;
  const std::size_t least = variable == any ? 0 : 1;
  for (std::size_t taken = length + 1; taken-- > least;) {
    if (variable != any) variables[variable] = name.substr(0, taken);
    if (rest(taken)) return true;
    variables.erase(variable);
  }
  if (!has_repeats_) failed.insert({at, name.size()});
  return false;
}

}  // namespace moe_diag
