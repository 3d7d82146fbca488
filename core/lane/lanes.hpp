// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/api/backend.hpp"
#include "core/contract/contract.hpp"
#include "core/lane/composed_lane.hpp"
#include "core/model/model.hpp"
#include "core/model/program.hpp"
#include "core/model/rounded_weights.hpp"
#include "core/plugin/host.hpp"
#include "core/recording/recordings.hpp"

namespace moe_diag {

// A lane of the contract. Calls into the backend go through here, so that whatever it throws names the lane.
class RunningLane {
 public:
  explicit RunningLane(const LaneSpec& spec);

  std::string name, backend;
  Description description;
  std::string engine;           // what its values are rounded to besides: "reads q8_0, stored as hf"; empty: nothing
  std::string plain_operators;  // that compute what its backend does not: "scores, softmax"; empty: none
  // Of a kernel's lane: which steps are its own, and what computes the others. Null: its backend computes them all.
  std::shared_ptr<const Composition> composition;
  Description base;
  std::string absent;  // why the lane could not be opened; empty: it runs
  bool unfed = false;  // only a lane that feeds it is missing
  int inputs = -1;     // index of the lane whose outputs replace this lane's after every step
  int routing = -1;    // index of the lane whose routing replaces this lane's
  int needs = -1;      // index of the lane that a kernel's other steps are computed as

  // What computes a site: the backend's words, or those of the base.
  const Description& computes(Site site) const {
    return composition && !composition->is_kernels(site) ? base : description;
  }
  // The steps that were computed at once with the one that wrote the site: that one alone, or all of a kernel's.
  std::span<const Step> steps_with(Site site, const Step& alone) const {
    return composition ? composition->steps_with(site) : std::span(&alone, 1);
  }
  // "f32", or with what its engine rounds besides.
  std::string numerics() const { return description.numerics + (engine.empty() ? "" : ", " + engine); }
  bool runs() const { return lane_ != nullptr && absent.empty(); }
  const std::string& label() const { return label_; }  // for messages: "lane 'cpu' (backend cpu)"
  void attach(std::unique_ptr<Lane> lane);
  // Gives back what computed so far.
  std::unique_ptr<Lane> replace(std::unique_ptr<Lane> lane);

  void begin(const Pass& pass);
  const Abilities& abilities() const { return abilities_; }
  // True when a pass over this sequence can begin behind its first `positions`, by what the caches have: those of the
  // layers that its passes went through, once they are done.
  bool has_cached(std::int64_t sequence, int positions) const {
    return sequence_ == sequence && (abilities_.rewinds ? cached_ >= positions : cached_ == positions);
  }
  // What the caches have is no longer what the lane computes in lockstep with others.
  void forget_caches() { sequence_.reset(); }
  void run(std::span<const Step> steps);
  Tensor read(Site site, Rows rows);
  void write(Site site, Rows rows, const Tensor& values);
  // Null when the lane does not show its caches, or lacks one of the positions. Throws Error(environment) when the
  // backend gives another shape.
  Tensor read_cache(Cache cache, int layer, Stretch positions, const ModelConfig& config);
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values);
  DeviceMemory device_memory() const;

 private:
  std::string label_;
  std::unique_ptr<Lane> lane_;
  Abilities abilities_;
  int first_ = 0;                         // position of row 0 of the pass
  std::optional<std::int64_t> sequence_;  // that the caches are of
  int cached_ = 0;                        // positions of it
};

// The lanes of one contract, in its order; backends are shared by the lanes of one device.
class Lanes {
 public:
  // Describes every lane; nothing large is allocated. A lane whose backend or device is not there is kept, marked
  // absent, and so is every lane it feeds. All that is given outlives it.
  Lanes(const Contract& contract, const Model& model, PluginHost& host, const Request& request,
        const Recordings* recordings = nullptr);
  // As many models as lanes, which differ in their weights only.
  Lanes(const Contract& contract, std::vector<const Model*> models, PluginHost& host, const Request& request,
        const Recordings* recordings = nullptr);

  // Opens the lanes that `needed` marks and that are not absent.
  void open(const std::vector<bool>& needed);

  // A second execution of a lane that runs, of the same backend and options, with its inputs from another one; opened
  // at once, behind all others. Returns its index. It stays until drop_copies(), and has no place in the contract.
  int add_fed_copy(int lane, int feeder);
  void drop_copies();

  const ModelConfig& config() const { return models_.front()->config(); }
  // The lane's steps, with its `variant` and the weights that its engine has.
  const Program& program(std::size_t lane) const { return varied_[lane] ? *varied_[lane] : model_program(lane); }
  // Bytes of host memory that the rounded copies of weights take which the marked lanes read.
  std::uint64_t bytes_of_copies(const std::vector<bool>& marked) const;
  std::size_t size() const { return lanes_.size(); }
  RunningLane& operator[](std::size_t i) { return lanes_[i]; }
  const RunningLane& operator[](std::size_t i) const { return lanes_[i]; }
  int index_of(std::string_view name) const;  // -1: no such lane

  // Lanes that run, every feeder before the lanes it feeds.
  std::vector<int> feeding_order() const;

 private:
  void describe(std::size_t i, PluginHost& host, const Request& request);
  void add_rounded_weights(std::size_t i);
  void add_variants(std::size_t i);
  const Program& model_program(std::size_t lane) const {
    return rounded_[lane] ? rounded_[lane]->program() : programs_.at(models_[lane]);
  }
  const ModelView& view(std::size_t i) const { return rounded_[i] ? rounded_[i]->view() : models_[i]->view(); }
  void describe_replay(std::size_t i);
  void describe_engine(std::size_t i);
  std::unique_ptr<Lane> opened(std::size_t i, RunningLane& lane);
  std::unique_ptr<Lane> on_base(std::size_t i, std::unique_ptr<Lane> kernel, RunningLane& lane);
  std::unique_ptr<Lane> default_base_of(std::size_t i, RunningLane& lane);
  void attach(std::size_t i, RunningLane& lane);
  void mark_unfed();

  const Contract& contract_;
  PluginHost& host_;
  const Request request_;
  const Recordings* const recordings_;  // null: no lane replays one
  std::vector<const Model*> models_;    // per lane
  std::map<const Model*, Program> programs_;
  std::map<std::pair<const Model*, std::string>, RoundedWeights> copies_;  // by the engine's word
  std::vector<RoundedWeights*> rounded_;                                   // per lane; null: the model's own weights
  std::vector<std::shared_ptr<const Program>> varied_;                     // per lane; null: the model's own forms
  std::map<std::pair<std::string, std::string>, std::unique_ptr<Backend>> backends_;  // by plugin and device
  std::vector<Backend*> backend_of_;
  std::vector<std::unique_ptr<Backend>> bases_;  // of kernels whose contract names none
  std::vector<RunningLane> lanes_;               // those of the contract, then copies
};

}  // namespace moe_diag
