// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/conformance/own_process.hpp"
#include "core/conformance/recorded_run.hpp"
#include "core/plugin/call.hpp"
#include "core/plugin/host.hpp"

namespace moe_diag {

// A plugin, and what it is tried with.
struct TriedPlugin {
  explicit TriedPlugin(const std::filesystem::path& file);

  PluginHost host;
  PluginRecord record;
  std::vector<std::pair<std::string, std::string>> options;
  std::set<std::string, std::less<>> refused;    // stages that a sink does not take
  std::chrono::milliseconds call_limit{10'000};  // a call that takes longer is broken off

  bool writes() const;  // has an option that names a file or folder
};

// The RunInfo for open(): the recorded run, with this folder for its output.
struct TrialRun {
  explicit TrialRun(const std::filesystem::path& folder) : out(folder.string()), info(recorded_run().info()) {
    info.out = out;
  }
  TrialRun(const TrialRun&) = delete;
  TrialRun& operator=(const TrialRun&) = delete;

  std::string out;
  RunInfo info;
};

// One check, in its own process: its working folder, and folders in it that the sink is to write below.
class Trial {
 public:
  using OptionList = std::vector<std::pair<std::string, std::string>>;

  Trial(TriedPlugin& plugin, std::filesystem::path folder, CallTrail& trail)
      : plugin_(plugin), folder_(std::move(folder)), trail_(trail) {}

  const std::filesystem::path& folder() const { return folder_; }
  const PluginRecord& record() const { return plugin_.record; }
  bool writes() const { return plugin_.writes(); }

  std::filesystem::path out(const std::string& name = "out") const;  // made when it is not there
  std::vector<RecordedEvent> events() const;                         // those that the sink takes
  Options options(const OptionList& changed = {}) const;

  // Calls of the sink go through these.
  std::unique_ptr<Sink> make(const Options& options);
  std::unique_ptr<Sink> make() { return make(options()); }
  SinkOutput output(const Sink& sink, const Load& load);
  void open(Sink& sink, const RunInfo& run);
  void consume(Sink& sink, const Event& event);
  void close(Sink& sink);

  void deliver(const RunInfo& run, const std::vector<RecordedEvent>& events);  // a whole run
  void deliver(const std::filesystem::path& out);

 private:
  // "consume (prompt 'short', lane 'truth', embedding, position 1)"
  void at(const char* call, const CallPlace& place = {});

  TriedPlugin& plugin_;
  std::filesystem::path folder_;
  CallTrail& trail_;
};

}  // namespace moe_diag
