// SPDX-License-Identifier: MIT
// What a run finds out, checks and tells before anything is computed; all there is to `check` and `plan`.
#include <fmt/format.h>

#include <algorithm>
#include <filesystem>

#include "core/plan/memory.hpp"
#include "core/plugin/guard.hpp"
#include "core/run/earlier_run.hpp"
#include "core/run/forecast.hpp"
#include "core/run/runner.hpp"

namespace moe_diag {
namespace {

ModelReport report_of(const Model& model) {
  ModelReport report;
  report.source = model.source();
  report.bytes = model.bytes();
  report.layers = model.config().layers;
  report.experts = model.config().experts;
  report.used = model.config().used;
  return report;
}

}  // namespace

// From the cache when the last contract's model is the same.
std::shared_ptr<const Model> Runner::opened_model() const {
  const ModelSource& source = contract_.model;
  if (!source.unset_variable.empty())
    throw Error(ErrorKind::absent,
                fmt::format("{}: the variable {} is not set", contract_.at(source.where), source.unset_variable));
  SyntheticSpec spec;
  spec.preset = source.synthetic;
  spec.layers = source.layers;
  spec.seed = source.seed;
  spec.router_scale = source.router_scale;
  if (!source.quant.empty()) spec.quant = source.quant;
  const bool is_file = source.synthetic.empty();
  const std::string name = is_file ? source.gguf : to_string(spec);
  if (options_.models && options_.models->model && options_.models->source == name) return options_.models->model;
  if (options_.models) options_.models->model.reset();  // two need not fit into memory
  auto model = std::make_shared<const Model>(is_file ? Model::open(source.gguf) : Model::synthetic(spec));
  if (options_.models) *options_.models = {name, model};
  return model;
}

bool Runner::open_model() {
  if (options_.progress) options_.progress({"opening the model"});
  try {
    model_ = opened_model();
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::absent) throw;
    verdict_.model.absent = e.what();
    return false;
  }
  verdict_.model = report_of(*model_);
  if (!contract_.model.stands_in_for.empty())
    verdict_.model.source += fmt::format(" ({} is not set)", contract_.model.stands_in_for);
  return true;
}

void Runner::plan() {
  plan_ = make_plan(contract_, *model_, options_.controls);
  for (const FaultSpec& fault : options_.inject)
    if (const std::string what = mistake_of(fault, contract_, model_->config(), plan_.program); !what.empty())
      throw Error(ErrorKind::usage, "--inject: " + what);
}

void Runner::read_digests() {
  for (const FalsifierSpec& spec : contract_.falsifiers) {
    if (spec.digest.empty() || digest_files_.count(spec.digest) > 0) continue;
    DigestFile& file = digest_files_[spec.digest];
    try {
      file.digests = moe_diag::read_digests(spec.digest, contract_.stages);
    } catch (const Error& e) {
      if (e.kind() != ErrorKind::absent) throw;
      file.absent = e.what();
    }
  }
}

void Runner::describe_lanes() {
  lanes_ = std::make_unique<Lanes>(contract_, *model_, host_, plan_.request);
  for (std::size_t i = 0; i < lanes_->size(); ++i) verdict_.lanes.push_back(lane_report(i));
  capture_ = std::make_unique<Capture>(contract_, plan_.captures, host_);
  check_output_files();
  check_bits();
}

// What sinks are going to write: none of what the call reads or writes itself; and what is there already may be
// replaced in the default folder when an earlier run left it.
void Runner::check_output_files() {
  const Capture evidence(contract_, plan_.evidence, host_);
  overwrite_ = options_.overwrite;
  if (options_.out.empty()) return;
  std::vector<PlannedOutput> outputs = outputs_of(*capture_, plan_.captures);
  for (PlannedOutput& output : outputs_of(evidence, plan_.evidence)) outputs.push_back(std::move(output));
  CallFiles files = options_.files;
  files.read(contract_);
  for (const PlannedOutput& output : outputs)
    if (std::filesystem::path(output.path).has_filename())  // it says where it writes
      CallFiles(files).write(fmt::format("sink '{}'", output.sink), output.path);
  if (!options_.is_default_out) return;
  const auto left = left_by_earlier_run(options_.out + "/verdict.json", contract_.metadata.id, outputs);
  if (!left) return;
  overwrite_ = true;
  verdict_.sink_outputs = *left;
}

void Runner::note_sink_outputs(const std::vector<PlannedOutput>& outputs) {
  auto& noted = verdict_.sink_outputs;
  for (const PlannedOutput& output : outputs)
    if (output.known && std::find(noted.begin(), noted.end(), output.path) == noted.end()) noted.push_back(output.path);
}

// A fault in a lane that does not run would be found by nobody, and look like proof that nothing is wrong.
void Runner::check_planted() const {
  for (const auto& [place, fault] : planted_) {
    const RunningLane& lane = (*lanes_)[static_cast<std::size_t>(lanes_->index_of(fault.lane))];
    if (lockstep_[static_cast<std::size_t>(lanes_->index_of(fault.lane))] || !lane.absent.empty()) continue;
    throw Error(ErrorKind::usage,
                fmt::format("{}: fault '{}': nothing looks at lane '{}' in the lockstep run, so it does not run", place,
                            fault.text, lane.name));
  }
}

// How wide values are, only the lanes know.
void Runner::check_bits() const {
  std::vector<std::pair<std::string, FaultSpec>> faults = planted_;
  if (options_.controls)
    for (const FalsifierSpec& falsifier : contract_.falsifiers)
      for (const FaultSpec& fault : falsifier.controls) faults.emplace_back(contract_.at(fault.where), fault);
  for (const auto& [place, fault] : faults) {
    const RunningLane& lane = (*lanes_)[static_cast<std::size_t>(lanes_->index_of(fault.lane))];
    const DType type = lane.description.stored(fault.stage);
    const int bits = static_cast<int>(size_of(type)) * 8;
    if (lane.absent.empty() && fault.bit >= bits)
      throw Error(ErrorKind::usage, fmt::format("{}: fault '{}': bit {} is not there, the values of lane '{}' are {} "
                                                "and have bits 0 to {}",
                                                place, fault.text, fault.bit, lane.name, name_of(type), bits - 1));
  }
}

LaneReport Runner::lane_report(std::size_t i) const {
  const LaneSpec& spec = contract_.lanes[i];
  const RunningLane& lane = (*lanes_)[i];
  const Description& d = lane.description;
  return {spec.name,   spec.backend, d.numerics,  d.device,  d.instruction_set,
          spec.inputs, spec.routing, lane.absent, lane.unfed};
}

// Those that are looked at, at once or once something is falsified.
std::vector<bool> Runner::lanes_to_open() const {
  std::vector<bool> opened = lanes_needed_by(plan_.evidence, *lanes_);
  const std::vector<bool> needed = needed_lanes(plan_, *lanes_);
  for (std::size_t i = 0; i < opened.size(); ++i) opened[i] = opened[i] || needed[i];
  return opened;
}

// Buffers on the host only: what a device needs, its backend checks.
std::uint64_t Runner::host_bytes(const std::vector<bool>& needed) const {
  std::uint64_t bytes = 0;
  for (std::size_t i = 0; i < lanes_->size(); ++i)
    if (const Description& d = (*lanes_)[i].description; needed[i] && !d.asynchronous) bytes += d.lane_bytes;
  return bytes;
}

void Runner::check_memory(const std::vector<bool>& needed) const {
  const std::uint64_t bytes = host_bytes(needed), available = available_memory();
  if (bytes > available)
    throw Error(
        ErrorKind::environment,
        fmt::format("the lanes' buffers take {}, {} of memory are available; shorten the prompts or leave lanes "
                    "out",
                    bytes_text(bytes), bytes_text(available)));
}

// In the order of the contract's sinks, those that the captures feed.
std::vector<PlannedOutput> Runner::outputs_of(const Capture& capture,
                                              const std::vector<WatchedCapture>& captures) const {
  std::vector<PlannedOutput> outputs;
  for (std::size_t i = 0; i < contract_.sinks.size(); ++i) {
    const Sink* sink = capture.sink(i);
    if (!sink) continue;
    const SinkSpec& spec = contract_.sinks[i];
    const Load load = load_of(static_cast<int>(i), captures, contract_, *lanes_);
    const std::string label = label_of(spec);
    const SinkOutput output = guard({label, "output"}, [&] { return sink->output(load); });
    outputs.push_back(
        {spec.name, (std::filesystem::path(options_.out) / output.path).string(), output.bytes, output.known});
  }
  return outputs;
}

// What is captured whatever the outcome counts when evidence comes to it, too.
void Runner::check_max_bytes(const std::vector<PlannedOutput>& evidence) const {
  std::vector<PlannedOutput> outputs = outputs_of(*capture_, plan_.captures);
  outputs.insert(outputs.end(), evidence.begin(), evidence.end());
  if (const std::string why = over_max_bytes(contract_, outputs); !why.empty()) throw Error(ErrorKind::usage, why);
}

void Runner::check_free_space(const std::vector<PlannedOutput>& outputs) const {
  const std::string why = over_free_space(outputs, overwrite_);
  if (!why.empty()) throw Error(ErrorKind::environment, why);
}

PlanReport Runner::plan_report() {
  PlanReport report;
  report.contract = &contract_;
  report.model = verdict_.model;
  if (!model_) return report;
  const std::vector<bool> opened = lanes_to_open();
  report.host_bytes = host_bytes(opened);
  report.host_available = available_memory();
  if (const std::unique_ptr<KeptOracle> record = kept_oracle()) report.kept_bytes = record->bytes();
  if (report.fits())
    lanes_->open(opened);
  else
    report.seconds.unknown = "the lanes' buffers do not fit into the memory that is available";
  for (std::size_t i = 0; i < lanes_->size(); ++i) {
    RunningLane& lane = (*lanes_)[i];
    const Description& d = lane.description;
    const DeviceMemory memory = lane.runs() ? lane.device_memory() : DeviceMemory{};
    report.lanes.push_back(
        {lane_report(i), opened[i], d.asynchronous, d.kernels, d.lane_bytes, d.weight_bytes, memory.total});
  }
  report.seconds.open = seconds();
  report.work = workload_of(contract_, plan_, plan_.program, *lanes_);
  plan_outputs(report);
  if (contract_.step) report.seconds.unknown = "one step alone takes less than what is around it";
  if (report.fits() && !contract_.step) forecast(report, plan_, plan_.program, *lanes_);
  return report;
}

// Evidence is of use only when something fails: what it may take at most refuses nothing.
void Runner::plan_outputs(PlanReport& report) const {
  const std::vector<PlannedOutput> always = outputs_of(*capture_, plan_.captures);
  const std::vector<PlannedOutput> evidence = outputs_of(Capture(contract_, plan_.evidence, host_), plan_.evidence);
  for (const SinkSpec& sink : contract_.sinks)
    for (const auto* outputs : {&always, &evidence})
      for (const PlannedOutput& output : *outputs)
        if (output.sink == sink.name) report.outputs.push_back(output);
  report.over_budget = over_max_bytes(contract_, always);
  if (report.over_budget.empty()) report.over_budget = over_free_space(always, overwrite_);
}

std::vector<std::string> Runner::absences() const {
  std::vector<std::string> list;
  if (!verdict_.model.absent.empty()) list.push_back("model: " + verdict_.model.absent);
  for (const LaneReport& lane : verdict_.lanes)
    if (!lane.absent.empty()) list.push_back(fmt::format("lane '{}': {}", lane.name, lane.absent));
  for (const auto& [path, file] : digest_files_)
    if (!file.absent.empty()) list.push_back("digests: " + file.absent);
  return list;
}

}  // namespace moe_diag
