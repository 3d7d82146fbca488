// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/conformance/recorded_run.hpp"
#include "core/plugin/call.hpp"
#include "core/plugin/host.hpp"

namespace moe_diag {

// The sink, and what it is tried with.
struct Subject {
  explicit Subject(const std::filesystem::path& file);

  PluginHost host;
  PluginRecord record;
  std::vector<std::pair<std::string, std::string>> options;
  std::set<std::string, std::less<>> refused;    // stages it does not take
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

  Trial(Subject& subject, std::filesystem::path folder, int trail)
      : subject_(subject), folder_(std::move(folder)), trail_(trail) {}

  const std::filesystem::path& folder() const { return folder_; }
  const PluginRecord& record() const { return subject_.record; }
  bool writes() const { return subject_.writes(); }

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

  // "consume (prompt 'short', lane 'truth', embedding, position 1)"
  const std::string& last_call() const { return last_call_; }

 private:
  void at(const char* call, const CallPlace& place = {});

  Subject& subject_;
  std::filesystem::path folder_;
  int trail_;
  std::string last_call_ = "before its first call";
};

// What a check saw.
struct Seen {
  std::string failure = {};  // empty: as promised
  std::string note = {};
  std::string not_tried = {};  // why it could not be looked at; empty: it was
  bool hangs = false;          // a call did not return
};

// A plugin may end the process, change the locale or wait for ever: a check runs in a process of its own, in an empty
// folder that goes with it. What it throws is a failure, and so is an end without a result. A process in which a call
// takes longer than the subject's limit is killed.
Seen in_own_process(Subject& subject, Seen (*look)(Trial&));

}  // namespace moe_diag
