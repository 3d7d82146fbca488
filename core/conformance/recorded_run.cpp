// SPDX-License-Identifier: MIT
#include "core/conformance/recorded_run.hpp"

#include <algorithm>
#include <memory>
#include <utility>

#include "core/conformance/made_backend.hpp"
#include "core/conformance/scratch_folder.hpp"
#include "core/contract/contract.hpp"
#include "core/model/synthetic.hpp"
#include "core/run/run.hpp"

namespace moe_diag {
namespace {

constexpr const char* contract_text = R"(
metadata: {id: made, version: 1.0.0, description: a run to try sinks with, references: []}
model: {synthetic: tiny, seed: 7, layers: 3}
prompts:
  - {id: short, tokens: [3, 141, 59, 26, 53], chunk: 2, generate: 2}
  - {id: long-one, tokens: [26, 53, 58, 97, 93, 238, 462, 64]}
oracle: truth
lanes:
  truth: {backend: made, numerics: f64}
  fast: {backend: made, numerics: f32}
  step: {backend: made, numerics: f32, inputs: truth}
  gone: {backend: made, numerics: f32, device: absent}
capture:
  - {stages: all, positions: [1, 2, 4], lanes: all, to: it}
  - {stages: ["moe_router_*", moe_ffn_out, lm_head], positions: [0, 2, -1], lanes: all, to: it}
sinks: {it: {sink: recorder}}
)";

class Recorder final : public Sink {
 public:
  explicit Recorder(RecordedRun& run) : run_(run) {}

  void open(const RunInfo& info) override {
    run_.contract = info.contract;
    run_.contract_version = info.contract_version;
    run_.tool_version = info.tool_version;
    run_.source = info.model.source;
    run_.digest.text = info.model.digest();
    run_.bytes = info.model.bytes;
    run_.config = info.model.config;
    prompts_ = info.prompts;
    for (const LaneInfo& l : info.lanes)
      run_.lanes.push_back({std::string(l.name), std::string(l.backend), std::string(l.numerics), std::string(l.device),
                            std::string(l.instruction_set), l.values, l.runs});
  }
  void consume(const Event& e) override {
    const auto* bytes = e.tensor.as<std::byte>();
    run_.events.push_back({e.prompt,
                           e.lane,
                           e.site,
                           {e.positions.begin(), e.positions.end()},
                           e.tensor.dtype,
                           e.tensor.shape,
                           {bytes, bytes + e.tensor.bytes()},
                           e.total});
  }
  void close() override {
    for (const PromptInfo& p : prompts_)
      run_.prompts.push_back({std::string(p.id), {p.tokens.begin(), p.tokens.end()}, p.generated});
  }

 private:
  RecordedRun& run_;
  std::span<const PromptInfo> prompts_;
};

// In this thread and the queue's, which is joined: whoever forks afterwards has one thread.
RecordedRun record() {
  RecordedRun recorded;
  PluginHost host({});
  host.add_backend("made", [](const Options&) { return make_made_backend(); });
  host.add_sink("recorder", [&](const Options&) { return std::make_unique<Recorder>(recorded); });
  SyntheticSpec spec;
  spec.seed = 7;
  spec.layers = 3;
  ModelCache models{to_string(spec), std::make_shared<const Model>(Model::synthetic(spec, 1))};
  const ScratchFolder folder;
  RunOptions options;
  options.out = folder.path().string();
  options.tool_version = "0.0.0";
  options.models = &models;
  const Contract contract = parse_contract(contract_text, "made.yaml");
  const Verdict verdict = run_contract(contract, host, options);
  if (!verdict.failure.empty()) throw Error(ErrorKind::environment, verdict.failure);
  return recorded;
}

}  // namespace

RunInfo RecordedRun::info() const {
  RunInfo info;
  info.contract = contract;
  info.contract_version = contract_version;
  info.tool_version = tool_version;
  info.model = {source, bytes, &digest, config};
  info.prompts = prompt_infos;
  info.lanes = lane_infos;
  return info;
}

const RecordedRun& recorded_run() {
  static const RecordedRun& kept = [&]() -> const RecordedRun& {
    static RecordedRun run = record();
    for (const auto& p : run.prompts) run.prompt_infos.push_back({p.id, p.tokens, p.generated});
    for (const auto& l : run.lanes)
      run.lane_infos.push_back({l.name, l.backend, l.numerics, l.device, l.instruction_set, l.values, l.runs});
    return run;
  }();
  return kept;
}

}  // namespace moe_diag
