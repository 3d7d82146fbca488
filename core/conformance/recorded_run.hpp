// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "core/api/event.hpp"

namespace moe_diag {

// An event that owns its data.
struct RecordedEvent {
  int prompt = 0, lane = 0;
  Site site;
  std::vector<std::int32_t> positions;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::byte> bytes;
  std::int64_t total = 0;

  Event view() const { return {prompt, lane, site, positions, Tensor{bytes.data(), dtype, shape}, total}; }
};

struct RecordedDigest final : ModelDigest {
  std::string_view get() const override { return text; }

  std::string text;
};

// Everything that a run gave to a sink, in its order.
struct RecordedRun {
  RunInfo info() const;  // views of what follows; without `out`

  std::vector<RecordedEvent> events;
  std::string contract, contract_version, tool_version;
  std::string source;
  RecordedDigest digest;
  std::uint64_t bytes = 0;
  ModelConfig config;
  struct Prompt {
    std::string id;
    std::vector<std::int32_t> tokens;  // with those that the oracle chose
    int generated = 0;
  };
  struct LaneText {
    std::string name, backend, numerics, device, instruction_set;
    DType values = DType::f32;
    bool runs = true;
  };
  std::vector<Prompt> prompts;
  std::vector<LaneText> lanes;
  std::vector<PromptInfo> prompt_infos;  // views
  std::vector<LaneInfo> lane_infos;
};

// A real run, by the code that every run goes through: only what the lanes compute is made up. It has two prompts, one
// in chunks and with generated tokens; four lanes, of which one is fed by another and one is absent; every stage and
// several layers; positions with gaps. Made at the first call; throws Error when that fails.
const RecordedRun& recorded_run();

}  // namespace moe_diag
