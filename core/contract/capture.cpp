// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "core/contract/section.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {
namespace {

StageSelection read_stages(const Value& value, Stages known) {
  StageSelection selection;
  for (const Value& word : value.one_or_more()) {
    const auto pick = read_stage_word(word, known);
    if (!pick) continue;
    selection.text += (selection.text.empty() ? "" : ", ") + word.node().text;
    selection.stages.insert(selection.stages.end(), pick->stages.begin(), pick->stages.end());
  }
  put_in_forward_order(selection.stages);
  return selection;
}

std::vector<std::string> sink_names(const Contract& contract) {
  std::vector<std::string> names;
  for (const SinkSpec& s : contract.sinks) names.push_back(s.name);
  return names;
}

CaptureSpec read_entry(const Value& value, const Contract& contract) {
  Map map(value);
  CaptureSpec capture;
  capture.where = value.node().where;
  capture.lanes = lane_names(contract);
  if (const auto stages = map.require("stages")) capture.stages = read_stages(*stages, contract.stages);
  if (const auto layers = map.find("layers")) {
    capture.layers = read_layers(*layers).value_or(IndexSelection::all());
    check_layers(*layers, capture.stages.stages);
  }
  if (const auto positions = map.find("positions"))
    capture.positions = read_positions(*positions, contract, {}).value_or(IndexSelection::all());
  if (const auto lanes = map.find("lanes")) capture.lanes = read_names(*lanes, "lane", lane_names(contract));
  if (const auto to = map.require("to")) {
    capture.to = read_names(*to, "sink", sink_names(contract));
    if (contract.sinks.empty()) to->refuse("the contract has no sinks: add 'sinks'");
  }
  if (const auto when = map.find("when"))
    capture.when = when->choice("condition", {"always", "falsified"}).value_or("always") == "always"
                       ? CaptureSpec::When::always
                       : CaptureSpec::When::falsified;
  map.finish();
  return capture;
}

// A sink is opened before anything is computed, or when something was falsified: never both.
void check_when(const Value& item, const Contract& contract) {
  const CaptureSpec& last = contract.capture.back();
  for (const std::string& sink : last.to)
    for (const CaptureSpec& other : contract.capture)
      if (other.when != last.when && std::find(other.to.begin(), other.to.end(), sink) != other.to.end()) {
        item.refuse(
            fmt::format("the sink '{}' is fed by a capture of another 'when', at {}: give each a sink of its own",
                        shown(sink), contract.at(other.where)));
        return;
      }
}

}  // namespace

void read_capture(const Value& value, Contract& contract) {
  for (const Value& item : value.items()) {
    contract.capture.push_back(read_entry(item, contract));
    check_when(item, contract);
  }
}

}  // namespace moe_diag
