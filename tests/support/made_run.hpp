// SPDX-License-Identifier: MIT
#pragma once

// A run that never happened: prompts, lanes and events with known values, to try sinks with.

#include <cstddef>
#include <initializer_list>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/api/event.hpp"
#include "core/api/options.hpp"
#include "tests/support/stages.hpp"

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

// A model of small odd sizes, each its own.
inline ModelConfig made_config(int layers) {
  ModelConfig c;
  c.layers = layers;
  c.hidden = 33;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 6;
  c.experts = 11;
  c.used = 2;
  c.expert_width = 5;
  c.vocab = 3001;
  c.context = 64;
  c.rms_eps = 1e-6f;
  c.rope_theta = 1e6f;
  c.stages = qwen3moe.stages;
  c.caches = qwen3moe.caches;
  return c;
}

inline void fill(MadeEvent& e, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal(0.25, 3.0);
  const auto count = static_cast<std::size_t>(e.shape.count());
  for (std::size_t i = 0; i < count; ++i) {
    const double v = normal(random);
    if (e.dtype == DType::f64) e.values<double>()[i] = v;
    if (e.dtype == DType::f32) e.values<float>()[i] = static_cast<float>(v);
    if (e.dtype == DType::f16) e.values<F16>()[i] = F16(v);
    if (e.dtype == DType::bf16) e.values<BF16>()[i] = BF16(v);
  }
}

// Experts of each row: `used` different ones.
inline void choose(MadeEvent& e, unsigned seed, unsigned experts) {
  std::mt19937 random(seed);
  const auto used = static_cast<std::size_t>(e.shape.row());
  for (std::size_t row = 0; row < e.positions.size(); ++row) {
    const unsigned first = random() % experts, step = 1 + random() % (experts / static_cast<unsigned>(used));
    for (std::size_t k = 0; k < used; ++k)
      e.values<std::int32_t>()[row * used + k] =
          static_cast<std::int32_t>((first + step * static_cast<unsigned>(k)) % experts);
  }
}

inline void set_totals(std::vector<MadeEvent>& events) {
  for (MadeEvent& event : events) {
    event.total = 0;
    for (const MadeEvent& other : events)
      if (other.prompt == event.prompt && other.lane == event.lane && other.site == event.site)
        event.total += static_cast<std::int64_t>(other.positions.size());
  }
}

// Rows of `row` elements, one for each position, with values that depend on `seed` alone. The only ones of their site.
inline MadeEvent made_event(int prompt, int lane, Site site, std::vector<std::int32_t> positions, DType dtype,
                            std::initializer_list<std::int64_t> row, unsigned seed) {
  MadeEvent e{prompt, lane, site, std::move(positions), dtype, {}, {}};
  e.total = static_cast<std::int64_t>(e.positions.size());
  e.shape.dims[static_cast<std::size_t>(e.shape.rank++)] = static_cast<std::int64_t>(e.positions.size());
  for (const std::int64_t d : row) e.shape.dims[static_cast<std::size_t>(e.shape.rank++)] = d;
  const std::size_t bytes = static_cast<std::size_t>(e.shape.count()) * size_of(dtype);
  e.bytes.reserve(1);  // never null, even when empty
  e.bytes.resize(bytes);
  if (dtype == DType::i32)
    choose(e, seed, static_cast<unsigned>(made_config(1).experts));
  else
    fill(e, seed);
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
inline std::vector<MadeEvent> made_events() {
  const ModelConfig config = made_config(12);
  unsigned seed = 1;
  std::vector<MadeEvent> events;
  const auto add = [&](int prompt, int lane, Site site, const std::vector<std::int32_t>& positions) {
    const Shape shape = config.shape_of(site, 1, 10);
    DType dtype = lane == 0 ? DType::f64 : DType::f32;
    if (payload_of(site.stage) == Payload::indices) dtype = DType::i32;
    if (shape.rank == 2)
      events.push_back(made_event(prompt, lane, site, positions, dtype, {shape[1]}, seed++));
    else
      events.push_back(made_event(prompt, lane, site, positions, dtype, {shape[1], shape[2]}, seed++));
  };
  for (const int prompt : {0, 1})
    for (const std::vector<std::int32_t>& positions :
         {std::vector<std::int32_t>{0, 1, 2, 5}, std::vector<std::int32_t>{6, 9}})
      for (const int lane : {0, 1}) {
        add(prompt, lane, {stages::embedding, -1}, positions);
        for (const int layer : {0, 3, 11})
          for (const Stage stage :
               {stages::attn_scores, stages::moe_router_indices, stages::moe_expert_out, stages::moe_ffn_out})
            add(prompt, lane, {stage, layer}, positions);
        if (positions[0] == 6) add(prompt, lane, {stages::lm_head, -1}, positions);
      }
  add(0, 0, {stages::final_norm, -1}, {});
  set_totals(events);
  return events;
}

// The same with values of 16 bits: those of the first lane in f16, those of the second in bf16.
inline std::vector<MadeEvent> made_16_bit_events() {
  std::vector<MadeEvent> events = made_events();
  unsigned seed = 1;
  for (MadeEvent& event : events) {
    if (event.dtype == DType::i32) continue;
    event.dtype = event.lane == 0 ? DType::f16 : DType::bf16;
    event.bytes.resize(static_cast<std::size_t>(event.shape.count()) * size_of(event.dtype));
    fill(event, seed++);
  }
  return events;
}

inline Options made_options(const std::string& owner, const std::vector<std::pair<std::string, std::string>>& entries) {
  Options options(owner, "made.yaml:1:1");
  int line = 2;
  for (const auto& [key, value] : entries) options.add(key, value, "made.yaml:" + std::to_string(line++) + ":3");
  return options;
}

}  // namespace moe_diag
