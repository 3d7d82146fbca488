// SPDX-License-Identifier: MIT
#pragma once

// A run that never happened: prompts, lanes and events with known values, to drive sinks with.

#include <cstring>
#include <random>
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

  Event view() const { return {prompt, lane, site, positions, Tensor{bytes.data(), dtype, shape}}; }
  template <class T>
  T* values() {
    return reinterpret_cast<T*>(bytes.data());
  }
};

// Rows of `row` elements, one for each position, with values that depend on `seed` alone.
inline MadeEvent made_event(int prompt, int lane, Site site, std::vector<std::int32_t> positions, DType dtype,
                            std::initializer_list<std::int64_t> row, unsigned seed) {
  MadeEvent e{prompt, lane, site, std::move(positions), dtype, {}, {}};
  e.shape.dims[static_cast<std::size_t>(e.shape.rank++)] = static_cast<std::int64_t>(e.positions.size());
  for (const std::int64_t d : row) e.shape.dims[static_cast<std::size_t>(e.shape.rank++)] = d;
  const auto count = static_cast<std::size_t>(e.shape.count());
  e.bytes.resize(count * size_of(dtype) + 1);  // never null, even when empty
  e.bytes.resize(count * size_of(dtype));
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.25, 3.0);
  for (std::size_t i = 0; i < count; ++i) {
    const double v = normal(random);
    if (dtype == DType::f64) e.values<double>()[i] = v;
    if (dtype == DType::f32) e.values<float>()[i] = static_cast<float>(v);
    if (dtype == DType::i32) e.values<std::int32_t>()[i] = static_cast<std::int32_t>(random() % 11);
  }
  return e;
}

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
    info.model.digest = "0123456789abcdef";
    info.model.config.layers = layers;
    info.model.config.rms_eps = 1e-6f;
    info.prompts = prompts;
    info.lanes = lanes;
  }
  MadeRun(const MadeRun&) = delete;
  MadeRun& operator=(const MadeRun&) = delete;

  std::string out;
  std::vector<std::int32_t> tokens = {785, 9217, 308, 11, 12, 13, 14, 15, 16, 17};
  std::vector<PromptInfo> prompts;
  std::vector<LaneInfo> lanes;
  RunInfo info;
};

// What a run may deliver: two prompts, two lanes, both value types, indices, stages of the whole model, positions with
// gaps, a second pass for some sites, and a tensor without rows.
inline std::vector<MadeEvent> made_events() {
  unsigned seed = 1;
  std::vector<MadeEvent> events;
  for (const int prompt : {0, 1})
    for (const std::vector<std::int32_t>& positions :
         {std::vector<std::int32_t>{0, 1, 2, 5}, std::vector<std::int32_t>{6, 9}})
      for (const int lane : {0, 1}) {
        const DType values = lane == 0 ? DType::f64 : DType::f32;
        const auto add = [&](Stage stage, int layer, DType dtype, std::initializer_list<std::int64_t> row) {
          events.push_back(made_event(prompt, lane, {stage, layer}, positions, dtype, row, seed++));
        };
        add(Stage::embedding, -1, values, {7});
        for (const int layer : {0, 3, 11}) {
          add(Stage::attn_scores, layer, values, {4, 10});
          add(Stage::moe_router_indices, layer, DType::i32, {2});
          add(Stage::moe_expert_out, layer, values, {2, 33});
          add(Stage::moe_ffn_out, layer, values, {1});
        }
        if (positions[0] == 6) add(Stage::lm_head, -1, values, {3001});
      }
  events.push_back(made_event(0, 0, {Stage::final_norm, -1}, {}, DType::f64, {7}, seed));
  return events;
}

inline Options made_options(const std::string& owner, const std::vector<std::pair<std::string, std::string>>& entries) {
  Options options(owner, "made.yaml:1:1");
  int line = 2;
  for (const auto& [key, value] : entries) options.add(key, value, "made.yaml:" + std::to_string(line++) + ":3");
  return options;
}

}  // namespace moe_diag
