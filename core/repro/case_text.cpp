// SPDX-License-Identifier: MIT
#include "core/repro/case_text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/contract/contract_writer.hpp"
#include "core/contract/fault.hpp"
#include "core/contract/metric.hpp"
#include "core/ops/step_case.hpp"

namespace moe_diag {
namespace {

constexpr double oracle_rounding = 1e-12;  // rel_l2 that sums in another order may make in f64

std::vector<GivenValues> files_of(const std::vector<Stage>& stages, std::string (*file)(Stage)) {
  std::vector<GivenValues> files;
  for (Stage stage : stages) {
    GivenValues& values = files.emplace_back();
    values.stage = stage;
    values.file = file(stage);
  }
  return files;
}

FalsifierSpec at_site(FalsifierSpec claim, Site site) {
  claim.stages = {std::string(name_of(site.stage)), {site.stage}};
  claim.layers = site.layer < 0 ? IndexSelection::all() : IndexSelection::parse(std::to_string(site.layer), false);
  claim.positions = IndexSelection::all();
  return claim;
}

// That what the oracle gives is what it gave when the case was written.
FalsifierSpec claim_of_oracle(const CaseContract& c) {
  FalsifierSpec claim;
  claim.id = "EXPECTED";
  claim.claim = "the oracle gives what it gave when this case was written";
  claim.lane = c.oracle;
  claim.against = recorded_lane;
  claim.metric = Metric::rel_l2;
  claim.bound = {Bound::Kind::at_most, oracle_rounding};
  if (payload_of(c.site.stage) == Payload::indices) {
    claim.metric = Metric::routing_flips;
    claim.bound = {Bound::Kind::equals, 0};
  } else if (!fits(claim.metric, c.site.stage)) {
    claim.metric = Metric::noise_ratio;
    claim.bound = {Bound::Kind::at_most, failing_error};
  }
  return claim;
}

}  // namespace

std::string input_file(Stage stage) { return fmt::format("inputs/{}.npy", name_of(stage)); }
std::string expected_file(Stage stage) { return fmt::format("expected/{}.npy", name_of(stage)); }

std::string contract_text(const CaseContract& c) {
  Contract contract;
  contract.metadata.id = c.id;
  contract.metadata.version = c.version;
  contract.metadata.description = c.description;
  contract.model.gguf = case_model;
  PromptSpec& prompt = contract.prompts.emplace_back();
  prompt.id = c.prompt;
  prompt.tokens = c.tokens;
  contract.oracle = c.oracle;
  contract.lanes = c.lanes;
  contract.step =
      StepSpec{c.cut.first, c.cut.count, files_of(c.inputs, input_file), files_of(c.expected, expected_file), {}};
  contract.planted = c.planted;
  for (const FalsifierSpec& claim : c.claims) contract.falsifiers.push_back(at_site(claim, c.site));
  if (!c.expected.empty() && c.is_finite) contract.falsifiers.push_back(at_site(claim_of_oracle(c), c.site));
  return written(contract, "Written by moe-diag repro; README.txt says from what.");
}

std::optional<FaultSpec> fault_in_case(FaultSpec fault, const Cut& cut, int length) {
  const std::vector<int> changed = positions_changed(fault, length);
  const auto is_in_cut = [&](int p) { return p >= cut.first && p < cut.first + cut.count; };
  if (std::none_of(changed.begin(), changed.end(), is_in_cut)) return std::nullopt;
  if (fault.positions.text() != "all") {
    std::optional<IndexSelection> kept;
    for (int p : fault.positions.resolve(length)) {
      if (fault.kind == FaultSpec::Kind::stale_kv ? p >= cut.first + cut.count : !is_in_cut(p)) continue;
      const IndexSelection one = IndexSelection::parse(std::to_string(p), false);
      if (kept)
        kept->append(one);
      else
        kept = one;
    }
    fault.positions = *kept;
  }
  const bool of_expert = fault.expert >= 0;
  if (of_expert) fault.expert = number_of(fault.expert, cut.experts);
  if (is(fault.stage, Role::logits)) fault.index = number_of(fault.index, cut.vocabulary);
  if ((of_expert && fault.expert < 0) || fault.index < 0) return std::nullopt;
  return fault;
}

}  // namespace moe_diag
