// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/bus/fault.hpp"
#include "core/contract/contract.hpp"
#include "core/lane/lanes.hpp"

namespace moe_diag {

// The faults that are planted in the run itself: those of the contract, then those of the call.
class PlantedFaults {
 public:
  PlantedFaults(const Contract& contract, const std::vector<FaultSpec>& injected);

  std::vector<std::string> texts() const;  // "nan at moe_expert_out, layer 6, lane cuda"
  std::vector<PlantedFault> in(const Lanes& lanes) const;
  bool any_in(const std::string& lane) const;

  // Throws Error(usage) when a fault's lane is open and not among those of the lockstep run.
  void check_lanes(const Lanes& lanes, const std::vector<bool>& lockstep) const;
  // The same when a fault flips a bit that the lane's values do not have; with `controls`, also of those.
  void check_bits(const Lanes& lanes, bool controls) const;

  // Those that changed nothing although their lane runs; `changed` has how much each did.
  std::vector<std::string> in_vain(const Lanes& lanes, const std::vector<std::int64_t>& changed) const;

 private:
  // A fault, and for messages who asked for it: its place in the contract, or the option of the call.
  struct Asked {
    std::string place;
    FaultSpec fault;
  };

  const Contract& contract_;
  std::vector<Asked> faults_;
};

}  // namespace moe_diag
