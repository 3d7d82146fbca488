// SPDX-License-Identifier: MIT
#include "core/run/runner.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/plan/budget.hpp"
#include "core/plan/memory.hpp"
#include "core/run/open_model.hpp"

namespace moe_diag {

Runner::Runner(const Contract& contract, PluginHost& host, const RunOptions& options)
    : contract_(contract), host_(host), options_(options), planted_(contract, options.inject) {}

bool Runner::open_model() {
  if (options_.progress) options_.progress({"opening the model"});
  try {
    model_ = moe_diag::open_model(contract_, options_.models);
  } catch (const Error& e) {
    if (e.kind() != ErrorKind::absent) throw;
    model_report_.absent = e.what();
    return false;
  }
  recordings_ = Recordings(contract_, model_->config());
  model_report_ = report_of(*model_, contract_);
  digest_.emplace(*model_, options_);
  return true;
}

void Runner::plan() {
  plan_ = make_plan(contract_, *model_, options_.controls, &recordings_);
  for (const FaultSpec& fault : options_.inject)
    if (const std::string what = mistake_of(fault, contract_, model_->config(), plan_.program); !what.empty())
      throw Error(ErrorKind::usage, "--inject: " + what);
}

void Runner::describe_lanes() {
  lanes_ = std::make_unique<Lanes>(contract_, *model_, host_, plan_.request, &recordings_);
}

void Runner::check_faults() const { planted_.check_bits(*lanes_, options_.controls); }

// Those that are looked at, at once or once something is falsified.
std::vector<bool> Runner::lanes_to_open() const {
  std::vector<bool> opened = lanes_needed_by(plan_.evidence, *lanes_);
  const std::vector<bool> needed = needed_lanes(plan_, *lanes_);
  for (std::size_t i = 0; i < opened.size(); ++i) opened[i] = opened[i] || needed[i];
  return opened;
}

// Buffers and rounded weights on the host only: what a device needs, its backend checks.
std::uint64_t Runner::host_bytes() const {
  const std::vector<bool> opened = lanes_to_open();
  std::uint64_t bytes = lanes_->bytes_of_copies(opened);
  for (std::size_t i = 0; i < lanes_->size(); ++i)
    if (const Description& d = (*lanes_)[i].description; opened[i] && !d.asynchronous) bytes += d.lane_bytes;
  return bytes;
}

void Runner::check_memory() const {
  const std::uint64_t bytes = host_bytes(), available = available_memory();
  if (bytes > available)
    throw Error(
        ErrorKind::environment,
        fmt::format("the lanes' buffers{} take {}, {} of memory are available; shorten the prompts or leave lanes "
                    "out",
                    lanes_->bytes_of_copies(lanes_to_open()) > 0 ? " and rounded weights" : "", bytes_text(bytes),
                    bytes_text(available)));
}

void Runner::open_lanes() {
  if (!lanes_) {
    describe_lanes();
    check_faults();
    check_memory();
  }
  if (options_.progress) options_.progress({"opening the lanes"});
  lanes_->open(lanes_to_open());
  lockstep_ = lockstep_lanes(plan_, *lanes_);
  planted_.check_lanes(*lanes_, lockstep_);
  sequences_ = std::make_unique<Sequences>(contract_, plan_.chooser);
}

double Runner::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

void Runner::stop_without_oracle() {
  if (plan_.chooser < 0) return;
  const RunningLane& oracle = lane(plan_.chooser);
  for (int p = 0; p < static_cast<int>(contract_.prompts.size()); ++p)
    if (!oracle.runs()) sequences_->stop(p, fmt::format("the oracle '{}' is absent: {}", oracle.name, oracle.absent));
}

std::vector<std::int64_t> Runner::walk(const Walk& walk) {
  Bus bus;
  for (Hook* hook : walk.hooks) bus.add(*hook);
  std::optional<GivenInputs> feed;  // of a step alone
  if (contract_.step) feed.emplace(*contract_.step, plan_.program.front(), model_->config());
  Forward forward(*lanes_, bus, walk.faults, walk.lanes, feed ? &*feed : nullptr);
  const int layers = model_->config().layers;
  const auto count = static_cast<int>(contract_.prompts.size());
  std::int64_t done = 0, total = 0;  // passes
  digest_->set_quiet(true);
  const auto stretches = [&](const PromptSpec& prompt) { return feed ? feed->stretches() : stretches_of(prompt); };
  for (const PromptSpec& prompt : contract_.prompts) total += static_cast<std::int64_t>(stretches(prompt).size());
  for (int p = 0; p < count; ++p) {
    if (!bus.looks_at(p, *lanes_)) continue;
    const PromptSpec& prompt = contract_.prompts[static_cast<std::size_t>(p)];
    int end = 0;
    const std::string now = walk.what.empty() ? fmt::format("prompt {}", prompt.id) : walk.what;
    for (const Stretch& stretch : stretches(prompt)) {
      const auto at_layer = [&](int layer) {
        if (options_.progress) options_.progress({now, done * layers + layer, total * layers});
        if (options_.interrupted && options_.interrupted())
          throw Error(ErrorKind::environment, "interrupted: " + now + " was not finished");
      };
      if (stretch.end() <= sequences_->known(p)) {
        end = stretch.end();
        forward.pass(feed ? feed->pass_over(sequences_->sequence(p), stretch)
                          : pass_over(sequences_->sequence(p), stretch, plan_.head_first[static_cast<std::size_t>(p)]),
                     p, options_.progress || options_.interrupted ? std::function<void(int)>(at_layer) : nullptr);
      }
      ++done;
    }
    if (walk.after_prompt && end > 0) walk.after_prompt(p, end);
  }
  digest_->set_quiet(false);
  return forward.changed();
}

void Runner::show_to(Hook& hook) {
  walk({{&hook, sequences_.get()}, planted_.in(*lanes_), lockstep_, "what a step reads", {}});
}

double Runner::finish_digest() const {
  if (contract_.falsifiers.empty()) return 0;
  const double before = seconds();
  digest_->wait();
  return seconds() - before;
}

}  // namespace moe_diag
