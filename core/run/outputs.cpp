// SPDX-License-Identifier: MIT
#include "core/run/outputs.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>

#include "core/api/output_file.hpp"
#include "core/capture/evidence.hpp"
#include "core/plan/workload.hpp"
#include "core/plugin/guard.hpp"
#include "core/run/earlier_run.hpp"

namespace moe_diag {
namespace {

// Over the progress line, when there is one.
void warn_on_stderr(const std::string& text) {
  fmt::print(stderr, "{}moe-diag: warning: {}\n", ::isatty(STDERR_FILENO) ? "\r\033[K" : "", text);
}

void note(const std::vector<PlannedOutput>& outputs, std::vector<std::string>& noted) {
  for (const PlannedOutput& output : outputs)
    if (output.known && std::find(noted.begin(), noted.end(), output.path) == noted.end()) noted.push_back(output.path);
}

}  // namespace

Outputs::Outputs(Runner& runner)
    : runner_(runner),
      contract_(runner.contract()),
      options_(runner.options()),
      overwrite_(options_.overwrite),
      capture_(std::make_unique<Capture>(contract_, runner.planned().captures, runner.host())) {
  check_files();
}

// In the order of the contract's sinks, those that the captures feed.
std::vector<PlannedOutput> Outputs::of(const Capture& capture, const std::vector<WatchedCapture>& captures) const {
  std::vector<PlannedOutput> outputs;
  for (std::size_t i = 0; i < contract_.sinks.size(); ++i) {
    const Sink* sink = capture.sink(i);
    if (!sink) continue;
    const SinkSpec& spec = contract_.sinks[i];
    const Load load = load_of(static_cast<int>(i), captures, contract_, runner_.lanes());
    const std::string label = label_of(spec);
    const SinkOutput output = guard({label, "output"}, [&] { return sink->output(load); });
    outputs.push_back(
        {spec.name, (std::filesystem::path(options_.out) / output.path).string(), output.bytes, output.known});
  }
  return outputs;
}

std::vector<PlannedOutput> Outputs::always() const { return of(*capture_, runner_.planned().captures); }

// At most: of all that a contract's evidence selects.
std::vector<PlannedOutput> Outputs::evidence() const {
  const std::vector<WatchedCapture>& captures = runner_.planned().evidence;
  return of(Capture(contract_, captures, runner_.host()), captures);
}

// None of what the call reads or writes itself; and what is there already may be replaced in the default folder when an
// earlier run left it.
void Outputs::check_files() {
  const std::vector<WatchedCapture>& captures = runner_.planned().evidence;
  const Capture evidence(contract_, captures, runner_.host());
  if (options_.out.empty()) return;
  std::vector<PlannedOutput> outputs = always();
  for (PlannedOutput& output : of(evidence, captures)) outputs.push_back(std::move(output));
  CallFiles files = options_.files;
  files.read(contract_);
  for (const PlannedOutput& output : outputs)
    if (std::filesystem::path(output.path).has_filename())  // it says where it writes
      CallFiles(files).write(fmt::format("sink '{}'", output.sink), output.path);
  if (!options_.is_default_out) return;
  const auto left = left_by_earlier_run(options_.out + "/verdict.json", contract_.metadata.id, outputs);
  if (!left) return;
  overwrite_ = true;
  left_ = *left;
}

void Outputs::check_max_bytes(const std::vector<PlannedOutput>& outputs) const {
  if (const std::string why = over_max_bytes(contract_, outputs); !why.empty()) throw Error(ErrorKind::usage, why);
}

void Outputs::check_max_bytes() const { check_max_bytes(always()); }

void Outputs::check_free_space(const std::vector<PlannedOutput>& outputs) const {
  const std::string why = over_free_space(outputs, overwrite_);
  if (!why.empty()) throw Error(ErrorKind::environment, why);
}

void Outputs::check_room() const {
  check_max_bytes();
  check_free_space(always());
}

void Outputs::open(Verdict& verdict) {
  note_absent_lanes(runner_.planned().captures, verdict);
  if (!options_.out.empty()) claim_folder(options_.out, "--out");
  verdict.sink_outputs = left_;
  note(always(), verdict.sink_outputs);
  open_sinks(*capture_, verdict);
}

void Outputs::note_absent_lanes(const std::vector<WatchedCapture>& captures, Verdict& verdict) const {
  for (const WatchedCapture& capture : captures)
    for (int i : capture.lanes)
      if (const RunningLane& lane = runner_.lane(i); !lane.runs())
        verdict.captured_nothing.push_back(
            {fmt::format("{}: lane '{}' is absent: {}", contract_.at(capture.spec->where), lane.name, lane.absent),
             lane.name, false, capture.spec->where.line});
}

void Outputs::open_sinks(Capture& capture, const Verdict& verdict) {
  if (!capture.has_sinks()) return;
  if (options_.out.empty()) throw Error(ErrorKind::usage, "the contract has sinks: an output folder is needed");
  prompt_infos_.clear();
  lane_infos_.clear();
  for (const PromptSpec& p : contract_.prompts)
    prompt_infos_.push_back({p.id, runner_.sequences().tokens(static_cast<int>(prompt_infos_.size())), p.generate});
  for (const LaneReport& l : verdict.lanes) {
    const RunningLane& lane = runner_.lane(static_cast<int>(lane_infos_.size()));
    lane_infos_.push_back({l.name, l.backend, l.numerics, l.device, l.instruction_set, lane.description.values,
                           lane.runs(), lane.description.storage, &model_info_});
  }
  const Model& model = runner_.model();
  model_info_ = {model.source(), model.bytes(), &runner_.digest(), model.config()};
  RunInfo info;
  info.contract = contract_.metadata.id;
  info.contract_version = contract_.metadata.version;
  info.tool_version = options_.tool_version;
  info.out = options_.out;
  info.overwrite = overwrite_;
  info.model = model_info_;
  info.prompts = prompt_infos_;
  info.lanes = lane_infos_;
  planted_infos_.assign(verdict.planted.begin(), verdict.planted.end());
  info.planted = planted_infos_;
  capture.open(info, options_.interrupted, {options_.slow_call, options_.warn ? options_.warn : warn_on_stderr});
}

// What lies behind the end of a sequence was not captured.
void Outputs::note_ends(Verdict& verdict) const {
  const Sequences& sequences = runner_.sequences();
  for (int p = 0; p < static_cast<int>(contract_.prompts.size()); ++p) {
    const std::string& why = sequences.stopped(p);
    if (why.empty()) continue;
    for (const WatchedCapture& capture : runner_.planned().captures)
      if (const auto& positions = capture.positions[static_cast<std::size_t>(p)];
          !positions.empty() && positions.back() >= sequences.known(p))
        verdict.captured_nothing.push_back(
            {fmt::format("{}: {}", contract_.at(capture.spec->where), why), "", false, capture.spec->where.line});
  }
}

void Outputs::close(Verdict& verdict) {
  capture_->close();
  verdict.outputs = capture_->completed();
}

// What is captured whatever the outcome counts when evidence comes to it, too.
void Outputs::capture_evidence(Verdict& verdict) {
  const double before = runner_.seconds();
  const std::vector<WatchedCapture> captures =
      evidence_of(runner_.planned(), verdict.judgements, runner_.program(), runner_.model().config());
  if (captures.empty()) return;
  evidence_ = std::make_unique<Capture>(contract_, captures, runner_.host());
  note_absent_lanes(runner_.planned().evidence, verdict);
  const std::vector<PlannedOutput> outputs = of(*evidence_, captures);
  std::vector<PlannedOutput> all = always();
  all.insert(all.end(), outputs.begin(), outputs.end());
  check_max_bytes(all);
  check_free_space(outputs);
  note(outputs, verdict.sink_outputs);
  open_sinks(*evidence_, verdict);
  const Lanes& lanes = runner_.lanes();
  runner_.walk(
      {{evidence_.get()}, runner_.planted_faults().in(lanes), lanes_needed_by(captures, lanes), "evidence", {}});
  evidence_->close();
  verdict.outputs.insert(verdict.outputs.end(), evidence_->completed().begin(), evidence_->completed().end());
  verdict.timing.evidence = runner_.seconds() - before;
}

std::vector<PlannedOutput> Outputs::all() const {
  const std::vector<PlannedOutput> now = always(), later = evidence();
  std::vector<PlannedOutput> all;
  for (const SinkSpec& sink : contract_.sinks)
    for (const auto* outputs : {&now, &later})
      for (const PlannedOutput& output : *outputs)
        if (output.sink == sink.name) all.push_back(output);
  return all;
}

// Evidence is of use only when something fails: what it may take at most refuses nothing.
std::string Outputs::over_budget() const {
  const std::vector<PlannedOutput> outputs = always();
  const std::string why = over_max_bytes(contract_, outputs);
  return why.empty() ? over_free_space(outputs, overwrite_) : why;
}

}  // namespace moe_diag
