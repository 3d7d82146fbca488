// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "core/plugin/host.hpp"
#include "tests/support/made_run.hpp"
#include "tests/support/temporary_folder.hpp"

namespace moe_diag {

using OptionList = std::vector<std::pair<std::string, std::string>>;

// The sink as a run gets it: from its loaded plugin.
inline std::unique_ptr<Sink> loaded_sink(const std::string& name, const OptionList& options) {
  static PluginHost host({MOE_DIAG_PLUGINS});
  return host.make_sink(name, made_options("sink 'it'", options));
}

inline void deliver(Sink& sink, const RunInfo& run, const std::vector<MadeEvent>& events) {
  sink.open(run);
  for (const MadeEvent& event : events) sink.consume(event.view());
  sink.close();
}

inline std::string error_of(const std::function<void()>& body) {
  try {
    body();
  } catch (const std::exception& e) {
    return e.what();
  }
  return "no error";
}

// Writes what was delivered in a form that another program reads: one entry per event, in order, and its raw bytes.
inline std::string write_expected(const std::string& folder, const MadeRun& run, const std::vector<MadeEvent>& events) {
  auto list = nlohmann::json::array();
  for (std::size_t i = 0; i < events.size(); ++i) {
    const MadeEvent& e = events[i];
    const std::string raw = folder + "/" + std::to_string(i) + ".bin";
    write_text(raw, {reinterpret_cast<const char*>(e.bytes.data()), e.bytes.size()});
    const bool layered = info(e.site.stage).scope == Scope::layer;
    list.push_back({{"prompt", run.prompts[static_cast<std::size_t>(e.prompt)].id},
                    {"lane", run.lanes[static_cast<std::size_t>(e.lane)].name},
                    {"stage", name_of(e.site.stage)},
                    {"layer", layered ? nlohmann::json(e.site.layer) : nlohmann::json()},
                    {"dtype", name_of(e.dtype)},
                    {"row", std::vector<std::int64_t>(e.shape.dims.begin() + 1, e.shape.dims.begin() + e.shape.rank)},
                    {"positions", e.positions},
                    {"raw", raw}});
  }
  write_text(folder + "/expected.json", list.dump());
  return folder + "/expected.json";
}

// Where the Python package lies.
inline const std::string modules = std::string(MOE_DIAG_SOURCE_DIR) + "/apps/python";

// Output and errors of a script in this folder; "ok" when it found nothing wrong.
inline std::string run_python(const std::string& script, const std::vector<std::string>& arguments) {
  std::string command =
      std::string("'") + MOE_DIAG_PYTHON + "' " + MOE_DIAG_SOURCE_DIR + "/tests/unit/plugin/" + script;
  for (const std::string& a : arguments) command += " '" + a + "'";
  const std::unique_ptr<FILE, int (*)(FILE*)> pipe(::popen((command + " 2>&1").c_str(), "r"), &::pclose);
  std::string text;
  std::array<char, 4096> buffer{};
  while (pipe && std::fgets(buffer.data(), buffer.size(), pipe.get())) text += buffer.data();
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

}  // namespace moe_diag
