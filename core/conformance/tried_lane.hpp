// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/api/backend.hpp"
#include "core/conformance/conformance.hpp"
#include "core/conformance/judged_step.hpp"
#include "core/conformance/own_process.hpp"
#include "core/conformance/trial.hpp"

namespace moe_diag {

// A lane of the backend that is tried. Each call is said before it is made: "run (Q4_K, 7 rows: linear (Q4_K,
// qkv_matmul))".
class TriedLane final : public Lane {
 public:
  TriedLane(std::unique_ptr<Lane> lane, const TriedModel& model, Description description, CallTrail& trail);

  const TriedModel& model() const { return model_; }
  const Description& description() const { return description_; }
  const Pass& pass() const { return pass_; }
  // "qwen3moe, Q4_K, 7 rows": of the pass.
  std::string place() const;
  // Whether it computes a step by itself.
  bool computes(const Step& step) const { return supports({&step, 1}) == 1; }

  Abilities abilities() const override;
  std::size_t supports(std::span<const Step> steps) const override;
  void begin(const Pass& pass) override;
  void run(std::span<const Step> steps) override;
  Tensor read(Site site, Rows rows) override;
  bool has(Site site, Stretch positions) const override;
  void write(Site site, Rows rows, const Tensor& values) override;
  Tensor read_cache(Cache cache, int layer, Stretch positions) override;
  void write_cache(Cache cache, int layer, Stretch positions, const Tensor& values) override;
  DeviceMemory device_memory() override;

  // A pass over all of these tokens, or over some of a longer sequence.
  void begin_at(std::span<const std::int32_t> tokens, int first = 0, int total = 0, std::int64_t sequence = 1,
                int head_first = 0);
  // All rows that the pass has of a stage; throws Error where the lane shows nothing, or something of another shape.
  CopiedTensor read_all(Site site);
  void write_all(Site site, const host::Values& values);
  // NaN in all values that the step is to write, or this value.
  void poison(const Step& step, double value);

 private:
  void at(const std::string& call, const std::string& about) const;
  Rows rows_of(Stage stage) const;

  const std::unique_ptr<Lane> lane_;
  const TriedModel& model_;
  const Description description_;
  CallTrail& trail_;
  Pass pass_;
  std::vector<std::int32_t> tokens_;
};

// One check of a backend, in its own process.
class BackendTrial {
 public:
  BackendTrial(TriedPlugin& plugin, CallTrail& trail, std::string numerics)
      : plugin_(plugin), trail_(trail), numerics_(std::move(numerics)) {}

  const PluginRecord& record() const { return plugin_.record; }
  const std::string& numerics() const { return numerics_; }
  CallTrail& trail() { return trail_; }

  // The options of a lane: those given, the numerics at hand, and these.
  Options options(const PluginOptions& changed = {}) const;
  // Makes the backend, and has it read and describe: throws Error as it does.
  Description describe(const TriedModel& model, const Options& options);
  // A lane; null: the backend refuses the model, and `refusals` says why.
  std::unique_ptr<TriedLane> open(const TriedModel& model);
  // "Q4_0, Q5_0: of the first it says: ..."; empty: it has refused none.
  std::string refusals() const;

 private:
  Backend& backend(const Options& options);

  TriedPlugin& plugin_;
  CallTrail& trail_;
  const std::string numerics_;
  std::unique_ptr<Backend> backend_;
  std::string refused_, first_refusal_;
};

}  // namespace moe_diag
