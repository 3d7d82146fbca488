// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "core/api/model.hpp"
#include "core/api/stage.hpp"
#include "core/api/tensor.hpp"

namespace moe_diag {

struct PromptInfo {
  std::string_view id;
  // The whole sequence. The last `generated` of them follow the prompt: each is -1 until the oracle has chosen it,
  // which it has before the first event of its position, and stays so when it could not.
  std::span<const std::int32_t> tokens;
  int generated = 0;
};

struct ModelInfo;

struct LaneInfo {
  std::string_view name, backend, numerics, device, instruction_set;
  DType values = DType::f32;         // type of its values, where `storage` does not say otherwise
  bool runs = true;                  // false: its backend or device is absent, no event comes from it
  std::span<const DType> storage{};  // by Stage::index(): the type that the values of a stage are kept in; may be empty
  const ModelInfo* model = nullptr;  // that it computes
};

// Digests a model behind the run.
class ModelDigest {
 public:
  virtual std::string_view get() const = 0;  // waits until it is there; throws Error when the run is interrupted

 protected:
  ~ModelDigest() = default;
};

struct ModelInfo {
  std::string_view source;  // path of the file, or "synthetic: tiny, seed 7"
  std::uint64_t bytes = 0;
  const ModelDigest* digested = nullptr;
  ModelConfig config;

  // 16 hex digits: xxh3 of header, tensor table and every byte of every tensor. Ask in close(): it is computed while
  // the run goes on, and a sink that asks earlier holds the run up until it is there.
  std::string_view digest() const { return digested ? digested->get() : std::string_view(); }
};

// What a sink learns before the first event. Everything is valid until close() returns.
struct RunInfo {
  std::string_view contract;          // metadata.id
  std::string_view contract_version;  // metadata.version
  std::string_view tool_version;
  std::string_view out;    // folder the sink's own relative paths start from; exists
  bool overwrite = false;  // an existing capture may be replaced
  ModelInfo model;
  std::span<const PromptInfo> prompts;
  std::span<const LaneInfo> lanes;
  std::span<const std::string_view>
      planted;  // faults planted on purpose: what is captured is not what the model computes
};

// One captured tensor: some positions of one stage of one layer of one lane.
struct Event {
  int prompt = 0;  // index into RunInfo::prompts
  int lane = 0;    // index into RunInfo::lanes
  Site site;
  std::span<const std::int32_t> positions;  // absolute, ascending; one per row of the tensor
  Tensor tensor;                            // [positions, ...]; valid during the call only
  // How many positions of this site and prompt the sink gets in the whole run, these included. More than one event may
  // bring them, and fewer come when a sequence ends early.
  std::int64_t total = 0;
};

}  // namespace moe_diag
