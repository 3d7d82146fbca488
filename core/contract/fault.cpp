// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <iterator>

#include "core/contract/metric.hpp"
#include "core/contract/nearest.hpp"
#include "core/contract/section.hpp"

namespace moe_diag {
namespace {

constexpr int highest_layer = 100'000;
constexpr int last_site_layer = 1'000'000;  // stands for the last layer while the model is not known
constexpr int largest_index = 1'000'000'000;

std::optional<FaultSpec::Kind> read_kind(const Value& value) {
  using Kind = FaultSpec::Kind;
  const auto word = value.choice("fault", {"nan", "scale", "wrong_expert"});
  if (!word) return std::nullopt;
  return *word == "nan" ? Kind::nan : *word == "scale" ? Kind::scale : Kind::wrong_expert;
}

void read_site(Map& map, FaultSpec& fault, bool kind_known) {
  const auto stage = map.require("stage");
  const auto layer = map.find("layer");
  if (layer) fault.layer = static_cast<int>(layer->whole(0, highest_layer).value_or(0));
  if (!stage) return;
  const auto pick = read_stage_word(*stage);
  if (!pick) return;
  if (!pick->named) {
    stage->refuse(fmt::format("a fault is planted at one stage: name it, instead of '{}'", shown(stage->node().text)));
    return;
  }
  fault.stage = pick->stages.front();
  if (kind_known && !fits(fault.kind, fault.stage))
    stage->refuse(fmt::format("{} cannot be planted at {}: it fits {}", name_of(fault.kind), name_of(fault.stage),
                              fitting_stages(fault.kind)));
  const bool in_layer = info(fault.stage).scope == Scope::layer;
  if (in_layer && !layer)
    map.value().refuse(fmt::format("the key 'layer' is missing: {} is in every layer", name_of(fault.stage)));
  if (!in_layer && layer) layer->refuse(fmt::format("{} belongs to no layer: remove 'layer'", name_of(fault.stage)));
}

void read_strength(Map& map, FaultSpec& fault, bool kind_known) {
  if (const auto index = map.find("index")) {
    fault.index = static_cast<int>(index->whole(0, largest_index).value_or(0));
    if (kind_known && fault.kind != FaultSpec::Kind::nan) index->refuse("is for the fault 'nan': remove it");
  }
  if (const auto factor = map.find("factor")) {
    fault.factor = factor->number().value_or(fault.factor);
    if (kind_known && fault.kind != FaultSpec::Kind::scale) factor->refuse("is for the fault 'scale': remove it");
    if (fault.factor == 1) factor->refuse("a factor of 1 changes nothing");
  }
}

std::string text_of(const FaultSpec& fault) {
  std::string text(name_of(fault.kind));
  if (fault.kind == FaultSpec::Kind::scale) text += fmt::format(" by {}", fault.factor);
  text += fmt::format(" at {}", name_of(fault.stage));
  if (fault.layer >= 0) text += fmt::format(", layer {}", fault.layer);
  if (fault.positions.text() != "all") text += ", positions " + fault.positions.text();
  if (fault.kind == FaultSpec::Kind::nan && fault.index > 0) text += fmt::format(", element {}", fault.index);
  return text;
}

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

// True when the metric is the same for a row and for what the fault makes of it.
bool same_at_own_site(Metric metric, const FaultSpec& fault) {
  const bool keeps_order = fault.kind == FaultSpec::Kind::scale && fault.factor > 0;
  return keeps_order &&
         (metric == Metric::cosine_similarity || metric == Metric::argmax_agree || metric == Metric::topk_overlap);
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
  if (same_at_own_site(falsifier.metric, fault))
    return fmt::format("{} is the same after scaling, and {}", name_of(falsifier.metric), because);
  return "";
}

// Whatever the lane's logits are, the experts that follow from them are explained; so is all that comes after. What is
// not is a choice that the logits do not lead to, in the layer where it is made.
std::string blind_to_explained(const FalsifierSpec& falsifier, const FaultSpec& fault) {
  using Kind = FaultSpec::Kind;
  if (falsifier.metric != Metric::routing_real_flips || fault.kind == Kind::nan) return "";
  const bool misleads = (fault.kind == Kind::wrong_expert && fault.stage == Stage::moe_router_indices) ||
                        (fault.kind == Kind::scale && fault.stage == Stage::moe_router_probs && fault.factor <= 0);
  if (!misleads)
    return fmt::format(
        "{} counts the flips that the lane's own moe_router_logits do not explain, and these follow the "
        "fault; plant wrong_expert at moe_router_indices",
        name_of(falsifier.metric));
  if (falsifier.layers.contains(fault.layer) == false)
    return fmt::format(
        "the falsifier does not look at layer {}, and flips of other layers are explained by their logits",
        fault.layer);
  return "";
}

// A lane with `routing` drops what its own router did once the routing was shown.
std::string blind_with_routing(const FalsifierSpec& falsifier, const FaultSpec& fault) {
  if (fault.stage < Stage::moe_router_logits || fault.stage > Stage::moe_router_weights) return "";
  for (Stage s : falsifier.stages.stages)
    if (s >= fault.stage && s <= Stage::moe_router_weights) return "";
  return fmt::format(
      "lane '{}' takes its routing from another lane, so nothing after moe_router_weights sees a fault "
      "of its own router",
      falsifier.lane);
}

bool shares_positions(const FalsifierSpec& falsifier, const FaultSpec& fault, const Contract& contract, bool same) {
  for (const PromptSpec* prompt : prompts_of(contract, falsifier.prompts)) {
    const int count = prompt->length();
    if (prompt->tokens.empty()) return true;
    const auto looked = falsifier.positions.resolve(count), planted = fault.positions.resolve(count);
    if (!same && planted.front() <= looked.back()) return true;
    std::vector<int> both;
    std::set_intersection(looked.begin(), looked.end(), planted.begin(), planted.end(), std::back_inserter(both));
    if (!both.empty()) return true;
  }
  return false;
}

}  // namespace

std::optional<FaultSpec> read_fault(const Value& value, const Contract& contract, const FalsifierSpec* falsifier) {
  const std::size_t before = value.mistakes().count();
  Map map(value);
  FaultSpec fault;
  fault.where = value.node().where;
  const auto inject = map.require("inject");
  const auto kind = inject ? read_kind(*inject) : std::nullopt;
  if (kind) fault.kind = *kind;
  read_site(map, fault, kind.has_value());
  if (falsifier)
    fault.lane = falsifier->lane;
  else if (const auto lane = map.require("lane"))
    fault.lane = read_lane_name(*lane, contract);
  if (const auto positions = map.find("positions")) {
    const auto prompts = falsifier ? falsifier->prompts : std::vector<std::string>();
    fault.positions = read_positions(*positions, contract, prompts).value_or(IndexSelection::all());
    if (fault.kind == FaultSpec::Kind::wrong_expert && fault.stage != Stage::moe_router_indices)
      positions->refuse(fmt::format("at {} the step itself reads the wrong expert, at every position: remove it",
                                    name_of(fault.stage)));
  }
  read_strength(map, fault, kind.has_value());
  map.finish();
  if (value.mistakes().count() != before) return std::nullopt;
  fault.text = text_of(fault);
  return fault;
}

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
  if (last == planted && same_at_own_site(falsifier.metric, fault))
    return fmt::format("{} is the same after scaling, and the falsifier looks at nothing that follows",
                       name_of(falsifier.metric));
  if (!shares_positions(falsifier, fault, contract, fed))
    return fmt::format("planted at positions {}, it reaches none of the positions {} that the falsifier looks at",
                       fault.positions.text(), falsifier.positions.text());
  return "";
}

FaultSpec parse_fault(const std::string& text, const Contract& contract) {
  const std::string origin = "--inject";
  Mistakes mistakes(origin);
  auto node = parse_document(text, origin, mistakes);
  mistakes.raise();
  if (!node) node.emplace();
  node->origin = origin;
  const auto fault = read_fault(Value(*node, "", mistakes), contract, nullptr);
  mistakes.raise();
  return *fault;
}

}  // namespace moe_diag
