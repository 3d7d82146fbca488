// SPDX-License-Identifier: MIT
#include "core/repro/case_text.hpp"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "core/contract/fault.hpp"
#include "core/contract/metric.hpp"

namespace moe_diag {
namespace {

constexpr double oracle_rounding = 1e-12;  // rel_l2 that sums in another order may make in f64

// Text of any kind as a scalar of YAML.
std::string quoted_scalar(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    if (c == '"' || c == '\\')
      out += {'\\', c};
    else if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F)
      out += fmt::format("\\x{:02x}", static_cast<unsigned char>(c));
    else
      out += c;
  }
  return out + '"';
}

std::string lane_text(const LaneSpec& lane) {
  std::string text = fmt::format("  {}: {{backend: {}", quoted_scalar(lane.name), quoted_scalar(lane.backend));
  for (const Options::Entry& entry : lane.options.entries())
    text += fmt::format(", {}: {}", quoted_scalar(entry.key), quoted_scalar(entry.value));
  if (!lane.inputs.empty()) text += fmt::format(", inputs: {}", quoted_scalar(lane.inputs));
  return text + "}\n";
}

std::string files_text(const std::vector<Stage>& stages, std::string (*file)(Stage)) {
  std::vector<std::string> entries;
  for (Stage stage : stages) entries.push_back(fmt::format("{}: {}", name_of(stage), file(stage)));
  return fmt::format("{{{}}}", fmt::join(entries, ", "));
}

std::string step_text(const CaseContract& c) {
  std::string text = fmt::format("step:\n  positions: {}", c.cut.first);
  if (c.cut.count > 1) text += fmt::format("..={}", c.cut.first + c.cut.count - 1);
  text += '\n';
  if (!c.inputs.empty()) text += fmt::format("  inputs: {}\n", files_text(c.inputs, input_file));
  if (!c.expected.empty()) text += fmt::format("  expected: {}\n", files_text(c.expected, expected_file));
  return text;
}

std::string claim_text(const FalsifierSpec& claim, Site site) {
  std::string text = fmt::format("  - id: {}\n    claim: {}\n    lane: {}\n", quoted_scalar(claim.id),
                                 quoted_scalar(claim.claim), quoted_scalar(claim.lane));
  const auto add = [&](std::string_view key, const auto& value) { text += fmt::format("    {}: {}\n", key, value); };
  if (!claim.against.empty()) add("against", quoted_scalar(claim.against));
  add("stage", name_of(site.stage));
  if (site.layer >= 0) add("layers", site.layer);
  add("metric", name_of(claim.metric));
  if (claim.metric == Metric::mismatch_fraction) {
    add("rtol", claim.rtol);
    add("atol", claim.atol);
  }
  if (claim.metric == Metric::topk_overlap) add("k", claim.k);
  if (claim.metric == Metric::noise_ratio) add("floor", claim.floor.empty() ? "expected" : quoted_scalar(claim.floor));
  add(name_of(claim.bound.kind), claim.bound.value);
  return text;
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
  if (info(c.site.stage).payload == Payload::indices) {
    claim.metric = Metric::routing_flips;
    claim.bound = {Bound::Kind::equals, 0};
  }
  return claim;
}

}  // namespace

std::string input_file(Stage stage) { return fmt::format("inputs/{}.npy", name_of(stage)); }
std::string expected_file(Stage stage) { return fmt::format("expected/{}.npy", name_of(stage)); }

std::string contract_text(const CaseContract& c) {
  std::string text = fmt::format(
      "# Written by moe-diag repro; README.txt says from what.\n"
      "metadata:\n  id: {}\n  version: {}\n  description: {}\nmodel: {{gguf: {}}}\n"
      "prompts:\n  - {{id: {}, tokens: [{}]}}\noracle: {}\nlanes:\n",
      quoted_scalar(c.id), quoted_scalar(c.version), quoted_scalar(c.description), case_model, quoted_scalar(c.prompt),
      fmt::join(c.tokens, ", "), quoted_scalar(c.oracle));
  for (const LaneSpec& lane : c.lanes) text += lane_text(lane);
  text += step_text(c);
  if (!c.planted.empty()) text += "planted:\n";
  for (const FaultSpec& fault : c.planted) text += fmt::format("  - {}\n", flow_text(fault));
  text += "falsifiers:\n";
  for (const FalsifierSpec& claim : c.claims) text += claim_text(claim, c.site);
  if (!c.expected.empty() && c.is_finite) text += claim_text(claim_of_oracle(c), c.site);
  return text;
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
  if (fault.stage == Stage::lm_head) fault.index = number_of(fault.index, cut.vocabulary);
  if ((of_expert && fault.expert < 0) || fault.index < 0) return std::nullopt;
  return fault;
}

}  // namespace moe_diag
