// SPDX-License-Identifier: MIT
#include "core/run/planted_faults.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/api/error.hpp"

namespace moe_diag {
namespace {

std::size_t lane_of(const FaultSpec& fault, const Lanes& lanes) {
  return static_cast<std::size_t>(lanes.index_of(fault.lane));
}

}  // namespace

PlantedFaults::PlantedFaults(const Contract& contract, const std::vector<FaultSpec>& injected) : contract_(contract) {
  for (const FaultSpec& fault : contract.planted) faults_.push_back({contract.at(fault.where), fault});
  for (const FaultSpec& fault : injected) faults_.push_back({"--inject", fault});
}

std::vector<std::string> PlantedFaults::texts() const {
  std::vector<std::string> texts;
  for (const Asked& asked : faults_) texts.push_back(fmt::format("{}, lane {}", asked.fault.text, asked.fault.lane));
  return texts;
}

std::vector<PlantedFault> PlantedFaults::in(const Lanes& lanes) const {
  std::vector<PlantedFault> faults;
  for (const Asked& asked : faults_) faults.push_back({lanes.index_of(asked.fault.lane), asked.fault});
  return faults;
}

bool PlantedFaults::any_in(const std::string& lane) const {
  return std::any_of(faults_.begin(), faults_.end(), [&](const Asked& asked) { return asked.fault.lane == lane; });
}

// A fault in a lane that does not run would be found by nobody, and look like proof that nothing is wrong.
void PlantedFaults::check_lanes(const Lanes& lanes, const std::vector<bool>& lockstep) const {
  for (const auto& [place, fault] : faults_) {
    const RunningLane& lane = lanes[lane_of(fault, lanes)];
    if (lane.runs() && fault.kind == FaultSpec::Kind::stale_kv && !lane.abilities().shows_caches)
      throw Error(ErrorKind::usage, fmt::format("{}: fault '{}': lane '{}' does not show its caches, so none of its "
                                                "keys can be made stale",
                                                place, fault.text, lane.name));
    if (lockstep[lane_of(fault, lanes)] || !lane.absent.empty()) continue;
    throw Error(ErrorKind::usage,
                fmt::format("{}: fault '{}': nothing looks at lane '{}' in the lockstep run, so it does not run", place,
                            fault.text, lane.name));
  }
}

// How wide values are, only the lanes know.
void PlantedFaults::check_bits(const Lanes& lanes, bool controls) const {
  std::vector<Asked> faults = faults_;
  if (controls)
    for (const FalsifierSpec& falsifier : contract_.falsifiers)
      for (const FaultSpec& fault : falsifier.controls) faults.push_back({contract_.at(fault.where), fault});
  for (const auto& [place, fault] : faults) {
    const RunningLane& lane = lanes[lane_of(fault, lanes)];
    const DType type = lane.description.stored(fault.stage);
    const int bits = static_cast<int>(size_of(type)) * 8;
    if (lane.absent.empty() && fault.bit >= bits)
      throw Error(ErrorKind::usage, fmt::format("{}: fault '{}': bit {} is not there, the values of lane '{}' are {} "
                                                "and have bits 0 to {}",
                                                place, fault.text, fault.bit, lane.name, name_of(type), bits - 1));
  }
}

std::vector<std::string> PlantedFaults::in_vain(const Lanes& lanes, const std::vector<std::int64_t>& changed) const {
  const std::vector<std::string> all = texts();
  std::vector<std::string> in_vain;
  for (std::size_t f = 0; f < changed.size(); ++f)
    if (changed[f] == 0 && lanes[lane_of(faults_[f].fault, lanes)].runs()) in_vain.push_back(all[f]);
  return in_vain;
}

}  // namespace moe_diag
