// SPDX-License-Identifier: MIT
#pragma once

#include <filesystem>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "core/plugin/host.hpp"
#include "core/plugin/made_run.hpp"

namespace moe_diag {

// The sink, and what it is tried with.
struct Subject {
  explicit Subject(const std::filesystem::path& file);

  PluginHost host;
  PluginRecord record;
  std::vector<std::pair<std::string, std::string>> options;
  std::set<Stage> refused;  // stages it does not take

  bool writes() const;  // has an option that names a file or folder
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
  std::vector<MadeEvent> events() const;                             // those that the sink takes
  Options options(const OptionList& changed = {}) const;

  // Calls of the sink go through these.
  std::unique_ptr<Sink> make(const Options& options);
  std::unique_ptr<Sink> make() { return make(options()); }
  SinkOutput output(const Sink& sink, const Load& load);
  void open(Sink& sink, const RunInfo& run);
  void consume(Sink& sink, const Event& event);
  void close(Sink& sink);

  void deliver(const RunInfo& run, const std::vector<MadeEvent>& events);  // a whole run
  void deliver(const std::filesystem::path& out);

  char last_call() const { return last_call_; }

 private:
  void at(char call);

  Subject& subject_;
  std::filesystem::path folder_;
  int trail_;
  char last_call_ = ' ';
};

// What a check saw.
struct Seen {
  std::string failure;  // empty: as promised
  std::string note;
};

// A plugin may end the process, change the locale or wait for ever: a check runs in a process of its own, in an empty
// folder that goes with it. What it throws is a failure, and so is an end without a result.
Seen in_own_process(Subject& subject, Seen (*look)(Trial&));

}  // namespace moe_diag
