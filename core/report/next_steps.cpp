// SPDX-License-Identifier: MIT
#include "core/report/next_steps.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <set>
#include <system_error>

#include "core/report/text.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

const LaneReport* absent_lane(const Verdict& verdict, const std::string& name) {
  const auto at =
      std::find_if(verdict.lanes.begin(), verdict.lanes.end(), [&](const LaneReport& l) { return l.name == name; });
  return at == verdict.lanes.end() || at->absent.empty() ? nullptr : &*at;
}

// The lane itself, or the one that is missing further up: what feeds it, and what feeds that.
void add_root(const Verdict& verdict, const std::string& name, std::set<std::string>& roots) {
  const LaneReport* lane = absent_lane(verdict, name);
  while (lane && lane->unfed) lane = absent_lane(verdict, lane->inputs.empty() ? lane->routing : lane->inputs);
  if (lane) roots.insert(lane->name);
}

std::set<std::string> lanes_missed(const Verdict& verdict) {
  std::set<std::string> roots;
  for (const Judgement& j : verdict.judgements)
    if (j.outcome == Outcome::untested && !j.allowed)
      for (const std::string& name : {j.spec->lane, j.spec->against, j.spec->floor}) add_root(verdict, name, roots);
  for (const NotCaptured& missing : verdict.captured_nothing)
    if (!missing.allowed) add_root(verdict, missing.lane, roots);
  return roots;
}

// A case of one step is what `repro` would write, which reads the contract again.
bool is_reproducible(const Verdict& verdict) {
  std::error_code error;
  const bool is_file = std::filesystem::is_regular_file(verdict.contract->path, error);
  return is_file && !verdict.contract->step &&
         std::any_of(verdict.diagnosis.divergences.begin(), verdict.diagnosis.divergences.end(),
                     [](const Divergence& d) { return is_of_step(d.cause); });
}

}  // namespace

std::string next_steps(const Verdict& verdict, const std::string& verdict_file,
                       const std::vector<std::string>& plugin_dirs) {
  std::string text;
  const auto propose = [&](const std::string& what, std::string_view why) {
    text += fmt::format("next       {}    # {}\n", what, why);
  };
  if (!verdict.failure.empty()) return "";
  if (is_reproducible(verdict)) {
    std::string command = "moe-diag ";
    for (const std::string& folder : plugin_dirs) command += fmt::format("--plugin-dir {} ", shell_word(folder));
    propose(command + fmt::format("repro {} --out case", shell_word(verdict_file)),
            "writes the step as a case of its own");
  }
  for (const std::string& lane : lanes_missed(verdict))
    propose(fmt::format("--allow-untested {}", shell_word("lane:" + lane)),
            "where this lane may be absent: then it is no failure");
  const bool lacks_model = !verdict.model.absent.empty() && verdict.count(Outcome::untested) > verdict.count_allowed();
  if (lacks_model) propose("--allow-untested '*'", "where the model may be absent: then it is no failure");
  return text;
}

}  // namespace moe_diag
