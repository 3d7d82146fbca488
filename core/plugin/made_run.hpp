// SPDX-License-Identifier: MIT
#pragma once

// A run that never happened: prompts, lanes and events with known values, to try sinks with.

#include <cstddef>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "core/api/event.hpp"
#include "core/api/options.hpp"

namespace moe_diag {

// An event that owns what it points to.
struct MadeEvent {
  int prompt = 0, lane = 0;
  Site site;
  std::vector<std::int32_t> positions;
  DType dtype = DType::f32;
  Shape shape;
  std::vector<std::byte> bytes;
  std::int64_t total = 0;  // of all events of its site

  Event view() const { return {prompt, lane, site, positions, Tensor{bytes.data(), dtype, shape}, total}; }
  template <class T>
  T* values() {
    return reinterpret_cast<T*>(bytes.data());
  }
};

// Rows of `row` elements, one for each position, with values that depend on `seed` alone. The only ones of their site.
MadeEvent made_event(int prompt, int lane, Site site, std::vector<std::int32_t> positions, DType dtype,
                     std::initializer_list<std::int64_t> row, unsigned seed);

// A model of small odd sizes, each its own.
ModelConfig made_config(int layers);

// What a sink is told in open(), owned. Not copied or moved: `info` points into it.
struct MadeRun {
  explicit MadeRun(std::string out_folder, int layers = 12) : out(std::move(out_folder)) {
    prompts = {{"short", tokens}, {"long-one", tokens}};
    lanes = {{"truth", "cpu", "f64", "cpu, 2 threads", "scalar", DType::f64},
             {"fast", "cpu", "f32", "cpu, 2 threads", "avx2", DType::f32}};
    info.contract = "made";
    info.contract_version = "1.0.0";
    info.tool_version = "0.1.0";
    info.out = out;
    info.model.source = "synthetic: tiny, seed 7";
    info.model.bytes = 4096;
    info.model.digested = &digest;
    info.model.config = made_config(layers);
    info.prompts = prompts;
    info.lanes = lanes;
  }
  MadeRun(const MadeRun&) = delete;
  MadeRun& operator=(const MadeRun&) = delete;

  struct Digest final : ModelDigest {
    std::string_view get() const override { return "0123456789abcdef"; }
  };

  std::string out;
  Digest digest;
  std::vector<std::int32_t> tokens = {785, 9217, 308, 11, 12, 13, 14, 15, 16, 17};
  std::vector<PromptInfo> prompts;
  std::vector<LaneInfo> lanes;
  RunInfo info;
};

// What a run may deliver: two prompts, two lanes, both value types, indices, stages of the whole model, positions with
// gaps, a second pass for some sites, and a tensor without rows. Shapes are those of made_config.
std::vector<MadeEvent> made_events();

Options made_options(const std::string& owner, const std::vector<std::pair<std::string, std::string>>& entries);

}  // namespace moe_diag
