// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "core/api/model.hpp"
#include "core/contract/contract.hpp"
#include "core/recording/recording.hpp"

namespace moe_diag {

// The recordings that the lanes of a contract replay.
class Recordings {
 public:
  Recordings() = default;
  // Opens them. One that is not there is absent, and why; whatever else is wrong with one throws Error, at its place in
  // the contract.
  Recordings(const Contract& contract, const ModelConfig& config);

  // Null for a lane that computes, and for one whose recording is absent.
  const Recording* of(std::size_t lane) const { return lane < lanes_.size() ? lanes_[lane].recording.get() : nullptr; }
  const std::string& absent(std::size_t lane) const { return lanes_[lane].absent; }

 private:
  struct Opened {
    std::shared_ptr<const Recording> recording;
    std::string absent;
  };
  std::vector<Opened> lanes_;  // as in the contract
};

// Puts a prompt for each request of a recording in the place of `{recording: LANE}`: its tokens, and passes that are
// cut where its calls are, and where stages begin or end to be recorded. Entries whose recording is absent stay as they
// are.
void take_recorded_prompts(Contract& contract, const Recordings& recordings);

// The request of each prompt in a lane's recording: its own, or the one with its tokens. -1: there is none.
std::vector<int> requests_of(const Contract& contract, const LaneSpec& lane, const Recording& recording);

}  // namespace moe_diag
