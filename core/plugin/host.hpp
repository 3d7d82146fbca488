// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "core/api/backend.hpp"
#include "core/api/sink.hpp"

namespace moe_diag {

// What `moe-diag plugins` shows of one file.
struct PluginRecord {
  std::string path;
  PluginKind kind = PluginKind::sink;
  std::string name, summary;
  std::string refusal;              // why it was not loaded; empty when it was
  std::string shadowed_by;          // path of the one an earlier folder has under this name; neither checked nor loaded
  std::string absent;               // why it was not built, as the note says that stands in its place
  std::vector<OptionInfo> options;  // the keys it reads
};

// Finds, checks, loads and keeps plugins. Libraries stay loaded until the process ends, so this must outlive all that
// they made: it is the first object in main.
class PluginHost {
 public:
  // Search order: `directories` (--plugin-dir), else MOE_DIAG_PLUGIN_PATH (colon separated), else
  // <executable>/../lib/moe-diag/plugins, else the install folder. Never the working directory. Nothing is loaded
  // that the file name does not announce: moe_diag_<kind>_<name>.so. Of one name, the first folder's is taken. Folders
  // are looked into at the first question, so building a host cannot fail; naming one that is not there is an error.
  explicit PluginHost(const std::vector<std::string>& directories);
  ~PluginHost();

  // A plugin of the program itself, taken before any file of the name. Its options are not checked, and list() leaves
  // it out.
  using MakeSink = std::function<std::unique_ptr<Sink>(const Options&)>;
  using MakeBackend = std::function<std::unique_ptr<Backend>(const Options&)>;
  void add_sink(const std::string& name, MakeSink make);
  void add_backend(const std::string& name, MakeBackend make);

  // All plugins found, loaded or refused, by kind and name, and then the notes of those that were not built. Loads
  // each one. A note is a file moe_diag_<kind>_<name>.absent that holds the reason.
  std::vector<PluginRecord> list();

  // One of them, which alone is loaded. Throws Error(absent) and Error(usage) as make_sink does.
  PluginRecord find(PluginKind kind, std::string_view name);

  // Builds a plugin's object. Throws Error: absent when a note says that it was not built, environment when it was
  // refused or its factory failed, usage when neither a plugin nor a note has the name (with the nearest, the names
  // there are and where was searched), or when an option is wrong (or unknown, for a sink: a backend reads on in
  // describe).
  std::unique_ptr<Sink> make_sink(std::string_view name, const Options& options);
  std::unique_ptr<Backend> make_backend(std::string_view name, const Options& options);

  // Once all options have been read (of a sink: make_sink does it; of a backend: after describe). Refuses the first key
  // that nobody read (usage), and a plugin that has looked for a key that its manifest does not list (environment).
  void check_options(PluginKind kind, std::string_view name, const Options& options);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace moe_diag
