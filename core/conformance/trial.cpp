// SPDX-License-Identifier: MIT
#include "core/conformance/trial.hpp"

#include <fmt/format.h>

#include <algorithm>

namespace moe_diag {

namespace fs = std::filesystem;

TriedPlugin::TriedPlugin(const fs::path& file) : host({file.parent_path().string()}) {}

bool TriedPlugin::writes() const {
  return std::any_of(record.options.begin(), record.options.end(),
                     [](const OptionInfo& o) { return o.type == OptionType::path; });
}

fs::path Trial::out(const std::string& name) const {
  fs::create_directories(folder_ / name);
  return folder_ / name;
}

std::vector<RecordedEvent> Trial::events() const {
  std::vector<RecordedEvent> events = recorded_run().events;
  events.erase(std::remove_if(events.begin(), events.end(),
                              [&](const RecordedEvent& e) { return plugin_.refused.count(name_of(e.site.stage)) > 0; }),
               events.end());
  return events;
}

Options Trial::options(const OptionList& changed) const {
  OptionList list = plugin_.options;
  for (const auto& [key, value] : changed) {
    const auto same = [&, &name = key](const auto& option) { return option.first == name; };
    list.erase(std::remove_if(list.begin(), list.end(), same), list.end());
    list.emplace_back(key, value);
  }
  Options options("sink 'it'", "made.yaml:1:1");
  int line = 2;
  for (const auto& [key, value] : list) options.add(key, value, fmt::format("made.yaml:{}:3", line++));
  return options;
}

std::unique_ptr<Sink> Trial::make(const Options& options) {
  at("create");
  return plugin_.host.make_sink(plugin_.record.name, options);
}

SinkOutput Trial::output(const Sink& sink, const Load& load) {
  at("output");
  return sink.output(load);
}

void Trial::open(Sink& sink, const RunInfo& run) {
  at("open");
  sink.open(run);
}

void Trial::consume(Sink& sink, const Event& event) {
  const RecordedRun& run = recorded_run();
  at("consume", {run.prompts[static_cast<std::size_t>(event.prompt)].id,
                 run.lanes[static_cast<std::size_t>(event.lane)].name, event.site, event.site, event.positions});
  sink.consume(event);
}

void Trial::close(Sink& sink) {
  at("close");
  sink.close();
}

void Trial::deliver(const RunInfo& run, const std::vector<RecordedEvent>& events) {
  const auto sink = make();
  open(*sink, run);
  for (const RecordedEvent& event : events) consume(*sink, event.view());
  close(*sink);
}

void Trial::deliver(const fs::path& out) {
  const TrialRun run(out);
  deliver(run.info, events());
}

void Trial::at(const char* call, const CallPlace& place) {
  const std::string about = text_of(place);
  trail_.at(about.empty() ? call : fmt::format("{} ({})", call, about));
}

}  // namespace moe_diag
