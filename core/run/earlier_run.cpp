// SPDX-License-Identifier: MIT
#include "core/run/earlier_run.hpp"

#include <algorithm>
#include <filesystem>
#include <optional>

#include "core/api/error.hpp"
#include "core/gguf/file_state.hpp"
#include "core/run/earlier_verdict.hpp"

namespace moe_diag {
namespace {

std::optional<EarlierVerdict> verdict_in(const std::string& file, const std::string& contract_id) {
  try {
    EarlierVerdict verdict = read_verdict(file);
    if (verdict.contract_id == contract_id) return verdict;
  } catch (const Error&) {  // something else, which is not replaced
  }
  return std::nullopt;
}

}  // namespace

bool is_verdict_of(const std::string& file, const std::string& contract_id) {
  return verdict_in(file, contract_id).has_value();
}

std::optional<std::vector<std::string>> left_by_earlier_run(const std::string& verdict, const std::string& contract_id,
                                                            const std::vector<PlannedOutput>& outputs) {
  const std::optional<FileState> written = state_of(verdict);
  std::optional<EarlierVerdict> earlier = verdict_in(verdict, contract_id);
  if (!earlier || !written) return std::nullopt;
  std::vector<std::string>& named = earlier->sink_outputs;
  const auto may_be_replaced = [&](const PlannedOutput& output) {
    if (!output.known) return false;
    const std::optional<FileState> there = state_of(output.path);
    if (!there) return true;
    if (std::filesystem::is_regular_file(output.path) && there->modified > written->modified) return false;
    return std::find(named.begin(), named.end(), output.path) != named.end();
  };
  if (!std::all_of(outputs.begin(), outputs.end(), may_be_replaced)) return std::nullopt;
  named.erase(std::remove_if(named.begin(), named.end(), [](const std::string& path) { return !state_of(path); }),
              named.end());
  return std::move(named);
}

}  // namespace moe_diag
