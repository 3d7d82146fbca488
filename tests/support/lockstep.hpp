// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "core/compare/measure.hpp"
#include "core/forward/forward.hpp"
#include "core/lane/lanes.hpp"
#include "core/model/model.hpp"
#include "core/plugin/host.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {

using Keys = std::vector<std::pair<std::string, std::string>>;

// A lane as a contract would state it: {"inputs", ...} and {"routing", ...} name lanes; {"reads", ...}, {"scale", ...},
// {"weights", ...}, {"accumulator", ...}, {"stored", ...}, {"stored.STAGE", ...} {"kv_cache", ...} and {"kv_rotate",
// ...} are of its engine, the rest is the backend's.
inline LaneSpec lane_spec(const std::string& name, const Keys& keys) {
  LaneSpec spec;
  spec.name = name;
  spec.backend = "cpu";
  spec.options = Options("lane '" + name + "'", "test");
  for (const auto& [key, value] : keys) {
    if (key == "inputs")
      spec.inputs = value;
    else if (key == "routing")
      spec.routing = value;
    else if (key == "reads")
      spec.engine.reads = value;
    else if (key == "scale")
      for (const Stage stage : qwen3moe.stages) spec.engine.scales.emplace_back(stage, std::stof(value));
    else if (key == "weights")
      spec.engine.weights = value;
    else if (key == "accumulator")
      spec.engine.accumulator = value;
    else if (key == "stored")
      spec.engine.stored = value;
    else if (key == "kv_cache")
      spec.engine.kv_cache = value;
    else if (key == "kv_rotate")
      spec.engine.kv_rotate = value;
    else if (key.starts_with("stored."))
      spec.engine.stages.emplace_back(qwen3moe.stages.find(key.substr(7)), value == "bf16" ? DType::bf16 : DType::f16);
    else
      spec.options.add(key, value, "test");
  }
  return spec;
}

// One tensor as a hook saw it.
struct Seen {
  Shape shape;
  DType dtype = DType::f32;
  std::vector<std::byte> bytes;

  Tensor tensor() const { return {bytes.data(), dtype, shape}; }
  friend bool operator==(const Seen& a, const Seen& b) { return a.shape == b.shape && a.bytes == b.bytes; }
};

// Keeps every stage of every lane that is marked; of several passes, the rows one after the other.
class Recorder final : public Hook {
 public:
  explicit Recorder(std::size_t lanes, bool all = true) : Recorder(std::vector<bool>(lanes, true), all) {}
  explicit Recorder(std::vector<bool> lanes, bool all = true) : lanes_(std::move(lanes)), all_(all) {}

  bool wants(int, int, Site site) const override { return all_ || is(site.stage, Role::logits); }
  void show(Sighting& sighting) override {
    for (int lane = 0; lane < static_cast<int>(lanes_.size()); ++lane) {
      if (!lanes_[static_cast<std::size_t>(lane)]) continue;
      const Tensor t = sighting.tensor(lane);
      if (!t) continue;
      Seen& seen = at(lane, sighting.site);
      const auto* data = t.as<std::byte>();
      const std::int64_t rows_before = seen.bytes.empty() ? 0 : seen.shape[0];
      seen.shape = t.shape;
      seen.shape.dims[0] += rows_before;
      seen.dtype = t.dtype;
      seen.bytes.insert(seen.bytes.end(), data, data + t.bytes());
    }
  }

  Seen& at(int lane, Site site) { return seen_[{lane, site}]; }
  const std::map<std::pair<int, Site>, Seen>& all() const { return seen_; }

 private:
  std::vector<bool> lanes_;
  bool all_;
  std::map<std::pair<int, Site>, Seen> seen_;
};

// The largest relative L2 error of any row; infinite when a value is not finite.
inline double worst_row(const Tensor& a, const Tensor& b) {
  double worst = 0;
  for (std::int64_t row = 0; row < a.shape[0]; ++row) {
    Measure m;
    m.add(a, row * a.shape.row(), b, row * a.shape.row(), a.shape.row());
    worst = std::isnan(m.rel_l2()) ? INFINITY : std::max(worst, m.rel_l2());
  }
  return worst;
}

// Lanes of one model, driven without a contract file.
class Lockstep {
 public:
  Lockstep(Model model, std::vector<LaneSpec> lanes, int longest)
      : host_({MOE_DIAG_PLUGINS}), model_(std::move(model)) {
    contract_.lanes = std::move(lanes);
    lanes_ = std::make_unique<Lanes>(contract_, model_, host_, Request{longest, longest});
    lanes_->open(std::vector<bool>(lanes_->size(), true));
  }

  const Model& model() const { return model_; }
  Lanes& lanes() { return *lanes_; }

  // A sequence is known by where its tokens lie.
  static std::int64_t id_of(const std::vector<std::int32_t>& tokens) {
    return reinterpret_cast<std::intptr_t>(tokens.data());
  }

  // The whole sequence in passes of at most `chunk` rows; rows of the head from `head_first` on in each.
  void run(const std::vector<std::int32_t>& tokens, const std::vector<Hook*>& hooks,
           std::vector<PlantedFault> faults = {}, int chunk = 1 << 20, int head_first = 0) {
    Bus bus;
    for (Hook* hook : hooks) bus.add(*hook);
    Forward forward(*lanes_, bus, std::move(faults), std::vector<bool>(lanes_->size(), true));
    const int total = static_cast<int>(tokens.size());
    for (int first = 0; first < total; first += chunk) {
      const std::span<const std::int32_t> all = tokens;
      const auto count = static_cast<std::size_t>(std::min(chunk, total - first));
      forward.pass({all.subspan(static_cast<std::size_t>(first), count), first, total, head_first, id_of(tokens)}, 0);
    }
  }
  // Passes of the active lanes that end at these positions, the first of them from position `first` on.
  Recorder record_passes(const std::vector<std::int32_t>& tokens, const std::vector<int>& ends,
                         const std::vector<bool>& active, int first = 0) {
    Recorder recorder(active);
    Bus bus;
    bus.add(recorder);
    Forward forward(*lanes_, bus, {}, active);
    for (const int end : ends) {
      const std::span<const std::int32_t> all(tokens.data() + first, tokens.data() + end);
      forward.pass({all, first, static_cast<int>(tokens.size()), 0, id_of(tokens)}, 0);
      first = end;
    }
    return recorder;
  }
  Recorder record(const std::vector<std::int32_t>& tokens, int chunk = 1 << 20) {
    Recorder recorder(lanes_->size());
    run(tokens, {&recorder}, {}, chunk);
    return recorder;
  }

 private:
  PluginHost host_;
  Model model_;
  Contract contract_;
  std::unique_ptr<Lanes> lanes_;
};

}  // namespace moe_diag::test
