// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/contract/metric.hpp"
#include "core/contract/section.hpp"

namespace moe_diag {
namespace {

constexpr int last_site_layer = 1'000'000;  // stands for the last layer while the model is not known

bool looks_at(const FalsifierSpec& falsifier, Stage stage) {
  const auto& s = falsifier.stages.stages;
  return std::find(s.begin(), s.end(), stage) != s.end();
}

Site last_site(const FalsifierSpec& falsifier) {
  Site last{falsifier.stages.stages.front(), -1};
  for (Stage stage : falsifier.stages.stages) {
    const bool in_layer = info(stage).scope == Scope::layer;
    const Site site{stage, in_layer ? falsifier.layers.highest().value_or(last_site_layer) : -1};
    if (last < site) last = site;
  }
  return last;
}

// Why the metric is the same for a row and for what the fault makes of it; empty when it need not be.
std::string same_at_own_site(Metric metric, const FaultSpec& fault) {
  using Kind = FaultSpec::Kind;
  const bool of_order =
      metric == Metric::cosine_similarity || metric == Metric::argmax_agree || metric == Metric::topk_overlap;
  if (of_order && keeps_order(fault)) {
    const std::string_view what = fault.kind == Kind::skip_norm ? "a norm without its division" : "scaling";
    return fmt::format("{} is the same after {}", name_of(metric), what);
  }
  const bool of_nonfinite = metric == Metric::nonfinite || metric == Metric::nonfinite_beyond;
  if (of_nonfinite && info(fault.kind).stays_finite)
    return fmt::format("{} leaves finite values finite", name_of(fault.kind));
  if (metric == Metric::router_sum_error && fault.kind == Kind::uniform_weights) return "equal weights sum to 1, too";
  if (metric == Metric::router_sum_error && form_of(fault) == Fault::Form::softmax) return "a softmax sums to 1, too";
  return "";
}

// On a lane whose outputs are replaced after every step, a fault is seen where it is planted or nowhere.
std::string blind_with_inputs(const FalsifierSpec& falsifier, const FaultSpec& fault) {
  const std::string because = fmt::format(
      "lane '{}' takes its inputs from another lane after every step, so the fault is gone after its own site",
      falsifier.lane);
  if (!looks_at(falsifier, fault.stage))
    return fmt::format("the falsifier does not look at {}, and {}", name_of(fault.stage), because);
  if (fault.layer >= 0 && falsifier.layers.contains(fault.layer) == false)
    return fmt::format("the falsifier does not look at layer {}, and {}", fault.layer, because);
  const std::string same = same_at_own_site(falsifier.metric, fault);
  return same.empty() ? "" : fmt::format("{}, and {}", same, because);
}

// Whatever the lane's logits are, the experts that follow from them are explained; so is all that comes after. What is
// not is a choice that the logits do not lead to, in the layer where it is made. What makes values that are not finite
// may upset any of this.
std::string blind_to_explained(const FalsifierSpec& falsifier, const FaultSpec& fault) {
  using Kind = FaultSpec::Kind;
  if (falsifier.metric != Metric::routing_real_flips) return "";
  if (!info(fault.kind).stays_finite && fault.kind != Kind::scale) return "";
  const bool misleads = is(fault.stage, Role::choice) || (is(fault.stage, Role::router_probs) && !keeps_order(fault));
  if (!misleads)
    return fmt::format(
        "{} counts the flips that the lane's own {} do not explain, and these follow the fault; plant wrong_expert at "
        "{}",
        name_of(falsifier.metric), name_of(fault.stage.sibling(Role::router_scores)),
        name_of(fault.stage.sibling(Role::choice)));
  if (falsifier.layers.contains(fault.layer) == false)
    return fmt::format(
        "the falsifier does not look at layer {}, and flips of other layers are explained by their logits",
        fault.layer);
  return "";
}

// A lane with `routing` drops what its own router did once the routing was shown.
std::string blind_with_routing(const FalsifierSpec& falsifier, const FaultSpec& fault) {
  if (!is_of_router(fault.stage)) return "";
  for (Stage s : falsifier.stages.stages)
    if (is_of_router(s) && !comes_before(s, fault.stage)) return "";
  return fmt::format(
      "lane '{}' takes its routing from another lane, so nothing after {} sees a fault of its own router",
      falsifier.lane, name_of(fault.stage.sibling(Role::choice_weights)));
}

bool shares_positions(const FalsifierSpec& falsifier, const FaultSpec& fault, const Contract& contract, bool same) {
  for (const PromptSpec* prompt : prompts_of(contract, falsifier.prompts)) {
    const int count = prompt->length();
    if (prompt->tokens.empty()) return true;
    const auto looked = falsifier.positions.resolve(count), planted = positions_changed(fault, count);
    if (planted.empty()) continue;
    if (!same && planted.front() <= looked.back()) return true;
    std::vector<int> both;
    std::set_intersection(looked.begin(), looked.end(), planted.begin(), planted.end(), std::back_inserter(both));
    if (!both.empty()) return true;
  }
  return false;
}

// " and changing nothing at position 0,": empty where every position can change.
std::string unchanged_text(const FaultSpec& fault) {
  const int first = first_changed(fault);
  if (first == 0) return "";
  return first == 1 ? " and changing nothing at position 0,"
                    : fmt::format(" and changing nothing at positions 0 to {},", first - 1);
}

}  // namespace

std::string blind_to(const FalsifierSpec& falsifier, const FaultSpec& fault, const Contract& contract) {
  if (falsifier.stages.stages.empty()) return "";
  const LaneSpec* lane = find_lane(contract, falsifier.lane);
  const bool fed = lane && !lane->inputs.empty();
  if (fed) {
    std::string why = blind_with_inputs(falsifier, fault);
    if (!why.empty()) return why;
  }
  if (lane && !lane->routing.empty()) {
    std::string why = blind_with_routing(falsifier, fault);
    if (!why.empty()) return why;
  }
  if (std::string why = blind_to_explained(falsifier, fault); !why.empty()) return why;
  const Site last = last_site(falsifier), planted{fault.stage, fault.layer};
  if (last < planted)
    return fmt::format("it lies after all the falsifier looks at, the last of which is {}", name_of(last.stage));
  const std::string same = last == planted ? same_at_own_site(falsifier.metric, fault) : "";
  if (!same.empty()) return fmt::format("{}, and the falsifier looks at nothing that follows", same);
  if (!shares_positions(falsifier, fault, contract, fed))
    return fmt::format("planted at positions {},{} it reaches none of the positions {} that the falsifier looks at",
                       fault.positions.text(), unchanged_text(fault), falsifier.positions.text());
  return "";
}

}  // namespace moe_diag
