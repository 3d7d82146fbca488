// SPDX-License-Identifier: MIT
#include "core/plugin/host.hpp"

#include <dlfcn.h>
#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <boost/dll/shared_library.hpp>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>

#include "core/plugin/crash.hpp"
#include "core/plugin/guard.hpp"
#include "core/plugin/manifest.hpp"
#include "core/text/nearest.hpp"
#include "core/text/quote.hpp"

namespace moe_diag {

namespace fs = std::filesystem;

namespace {

using boost::dll::shared_library;

// Code and statics of a plugin may be reached until the process ends, by whatever it left behind; so no library is ever
// closed, not even a refused one.
void keep(shared_library library) {
  static auto& kept = *new std::vector<shared_library>;
  kept.push_back(std::move(library));
}

struct Found {
  fs::path path;
  PluginName name;
  std::string shadowed_by;
};

struct Loaded {
  std::string refusal;
  std::string summary;
  std::vector<OptionInfo> options;
  const void* create = nullptr;
};

// The reason a note gives, its first line.
std::string reason_of(const fs::path& note) {
  std::ifstream file(note);
  std::string reason;
  std::getline(file, reason);
  return reason;
}

// Whoever may write to the folder decides what runs here.
void warn_if_open_to_all(const fs::path& folder) {
  static std::set<fs::path> warned;
  struct stat s {};
  if (::stat(folder.c_str(), &s) != 0 || (s.st_mode & S_IWOTH) == 0 || !warned.insert(folder).second) return;
  fmt::print(stderr, "warning: plugin folder {} can be written by everyone: chmod o-w it\n", folder.string());
}

// The value of one exported alias, or null.
template <class T>
T* alias(const shared_library& library, const char* name) {
  return library.has(name) ? library.get<T*>(name) : nullptr;
}

Loaded load(const Found& found) {
  const auto refuse = [&](const std::string& why) {
    return Loaded{fmt::format("{}: refused: {}", found.path.string(), why), "", {}, nullptr};
  };
  if (const std::string defect = library_defect(found.path.string()); !defect.empty())
    return refuse(defect + ", wanted a plugin: build it again or remove it");
  if (const std::string why = foreign_stamp(found.path.string()); !why.empty()) return refuse(why);

  std::error_code error;
  const auto mode = boost::dll::load_mode::rtld_now | boost::dll::load_mode::rtld_local;
  const std::string label = found.path.string();
  shared_library library;
  {
    const PluginCall constructors{label, "load"};
    const CallScope scope(constructors);
    library.load(found.path, mode, error);
  }
  if (error) {
    const char* reason = ::dlerror();
    return refuse(
        fmt::format("it cannot be loaded ({}), wanted a library whose symbols all resolve: link what it misses",
                    reason ? reason : error.message()));
  }
  keep(library);

  const auto* manifest = alias<const PluginManifest>(library, "moe_diag_manifest");
  if (manifest) watch_for_crashes(label, manifest);
  if (!manifest)
    return refuse(
        "it exports no moe_diag_manifest, wanted a plugin: end its main file with MOE_DIAG_SINK or MOE_DIAG_BACKEND");
  if (const std::string why = refusal_of(*manifest, found.name); !why.empty()) return refuse(why);
  const auto* create = alias<const void>(library, "moe_diag_create");
  if (!create)
    return refuse(
        "it exports no moe_diag_create, wanted a factory: end its main file with MOE_DIAG_SINK or "
        "MOE_DIAG_BACKEND");
  return {"", manifest->summary, {manifest->options, manifest->options + manifest->option_count}, create};
}

std::string quoted_list(const std::vector<std::string>& items) {
  std::string text;
  for (const std::string& item : items) text += (text.empty() ? "" : ", ") + item;
  return text.empty() ? "none" : text;
}

}  // namespace

struct PluginHost::Impl {
  std::vector<std::string> asked;  // --plugin-dir
  bool scanned = false;
  std::vector<fs::path> folders;  // searched, in order
  std::vector<Found> found;       // by kind and name, the one taken before those it shadows
  std::vector<Found> notes;       // of plugins that were not built, and that no other folder has
  std::vector<std::optional<Loaded>> loaded;
  std::map<std::string, MakeSink, std::less<>> own_sinks;  // of the program itself
  std::map<std::string, MakeBackend, std::less<>> own_backends;

  bool is_own(PluginKind kind, std::string_view name) const {
    return kind == PluginKind::sink ? own_sinks.count(name) > 0 : own_backends.count(name) > 0;
  }
  void scan();
  void scan_folder(const fs::path& folder);
  const Loaded& load_once(std::size_t index);
  PluginRecord record_of(std::size_t index);
  std::size_t index_of(PluginKind kind, std::string_view name);
  [[noreturn]] void refuse_absent(PluginKind kind, std::string_view name) const;

  template <class Interface>
  std::unique_ptr<Interface> make(PluginKind kind, std::string_view name, const Options& options);
};

namespace {

std::vector<fs::path> split_path_list(std::string_view list) {
  std::vector<fs::path> folders;
  while (!list.empty()) {
    const std::size_t end = std::min(list.find(':'), list.size());
    // An empty entry would mean the working directory.
    if (end > 0) folders.push_back(fs::absolute(fs::path(list.substr(0, end))).lexically_normal());
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return folders;
}

std::vector<fs::path> folders_to_search(const std::vector<std::string>& asked) {
  std::vector<fs::path> folders;
  for (const std::string& folder : asked) {
    if (folder.empty() || !fs::is_directory(folder))
      throw Error(
          ErrorKind::usage,
          fmt::format("--plugin-dir '{}': no such folder; name one that holds moe_diag_<kind>_<name>.so", folder));
    folders.push_back(fs::absolute(folder).lexically_normal());
  }
  if (!folders.empty()) return folders;
  if (const char* list = std::getenv("MOE_DIAG_PLUGIN_PATH"); list && *list) return split_path_list(list);

  std::error_code error;
  const fs::path executable = fs::read_symlink("/proc/self/exe", error);
  if (!error) {
    const fs::path beside = (executable.parent_path() / "../lib/moe-diag/plugins").lexically_normal();
    if (fs::is_directory(beside, error)) return {beside};
  }
  return {MOE_DIAG_INSTALLED_PLUGINS};
}

}  // namespace

void PluginHost::Impl::scan() {
  if (scanned) return;
  for (fs::path& folder : folders_to_search(asked))
    if (std::find(folders.begin(), folders.end(), folder) == folders.end()) folders.push_back(std::move(folder));
  for (const fs::path& folder : folders) scan_folder(folder);
  std::stable_sort(found.begin(), found.end(), [](const Found& a, const Found& b) {
    return a.name.kind != b.name.kind ? a.name.kind < b.name.kind : a.name.name < b.name.name;
  });
  for (std::size_t i = 1; i < found.size(); ++i) {
    const Found& before = found[i - 1];
    if (before.name.kind == found[i].name.kind && before.name.name == found[i].name.name)
      found[i].shadowed_by = before.shadowed_by.empty() ? before.path.string() : before.shadowed_by;
  }
  notes.erase(std::remove_if(notes.begin(), notes.end(),
                             [&](const Found& note) {
                               return std::any_of(found.begin(), found.end(), [&](const Found& f) {
                                 return f.name.kind == note.name.kind && f.name.name == note.name.name;
                               });
                             }),
              notes.end());
  loaded.resize(found.size());
  scanned = true;
}

void PluginHost::Impl::scan_folder(const fs::path& folder) {
  std::error_code error;
  for (fs::directory_iterator file(folder, error), end; !error && file != end; file.increment(error))
    if (auto name = announced(file->path().filename().string(), ".so"))
      found.push_back({file->path(), std::move(*name), ""});
    else if (auto note = announced(file->path().filename().string(), ".absent"))
      notes.push_back({file->path(), std::move(*note), ""});
  if (!error) warn_if_open_to_all(folder);
}

const Loaded& PluginHost::Impl::load_once(std::size_t index) {
  if (!loaded[index]) loaded[index] = load(found[index]);
  return *loaded[index];
}

PluginRecord PluginHost::Impl::record_of(std::size_t index) {
  const Found& f = found[index];
  PluginRecord record{f.path.string(), f.name.kind, f.name.name, "", "", f.shadowed_by, "", {}};
  if (!f.shadowed_by.empty()) return record;
  const Loaded& plugin = load_once(index);
  record.summary = plugin.summary;
  record.refusal = plugin.refusal;
  record.options = plugin.options;
  return record;
}

std::size_t PluginHost::Impl::index_of(PluginKind kind, std::string_view name) {
  scan();
  for (std::size_t i = 0; i < found.size(); ++i)
    if (found[i].name.kind == kind && found[i].name.name == name) return i;
  refuse_absent(kind, name);
}

void PluginHost::Impl::refuse_absent(PluginKind kind, std::string_view name) const {
  for (const Found& note : notes)
    if (note.name.kind == kind && note.name.name == name)
      throw Error(ErrorKind::absent, fmt::format("{} plugin '{}' was not built: {} ({})", name_of(kind), name,
                                                 reason_of(note.path), note.path.string()));
  std::vector<std::string> known, searched;
  std::string other;
  for (const Found& note : notes)
    if (note.name.kind == kind) known.push_back(note.name.name);
  for (const Found& f : found) {
    if (f.shadowed_by.empty() && f.name.kind == kind) known.push_back(f.name.name);
    if (f.name.kind != kind && f.name.name == name) other = fmt::format(" ('{}' is a {})", name, name_of(f.name.kind));
  }
  for (const fs::path& folder : folders)
    searched.push_back(folder.string() + (fs::is_directory(folder) ? "" : " (not there)"));
  const auto close = nearest(name, known);
  throw Error(ErrorKind::usage,
              fmt::format("there is no {} '{}'{}{}; known: {}; searched: {}; correct the name, or name the folder of "
                          "moe_diag_{}_{}.so with --plugin-dir",
                          name_of(kind), shown(name), other, close ? fmt::format(", did you mean '{}'?", *close) : "",
                          quoted_list(known), quoted_list(searched), name_of(kind), shown(name)));
}

template <class Interface>
std::unique_ptr<Interface> PluginHost::Impl::make(PluginKind kind, std::string_view name, const Options& options) {
  const std::size_t index = index_of(kind, name);
  const Loaded& plugin = load_once(index);
  if (!plugin.refusal.empty()) throw Error(ErrorKind::environment, plugin.refusal);

  using Factory = Interface*(const Options&);
  const auto create = reinterpret_cast<Factory*>(const_cast<void*>(plugin.create));
  const std::string who = fmt::format("{}: {} '{}'", found[index].path.string(), name_of(kind), name);
  std::unique_ptr<Interface> made(guard({who, "create"}, [&] { return create(options); }));
  if (!made) throw Error(ErrorKind::environment, fmt::format("{}: create: returned null, wanted an object", who));
  return made;
}

PluginHost::PluginHost(const std::vector<std::string>& directories) : impl_(std::make_unique<Impl>()) {
  impl_->asked = directories;
}
PluginHost::~PluginHost() = default;

void PluginHost::add_sink(const std::string& name, MakeSink make) { impl_->own_sinks[name] = std::move(make); }
void PluginHost::add_backend(const std::string& name, MakeBackend make) { impl_->own_backends[name] = std::move(make); }

std::vector<PluginRecord> PluginHost::list() {
  impl_->scan();
  std::vector<PluginRecord> records;
  for (std::size_t i = 0; i < impl_->found.size(); ++i) records.push_back(impl_->record_of(i));
  for (const Found& note : impl_->notes)
    records.push_back({note.path.string(), note.name.kind, note.name.name, "", "", "", reason_of(note.path), {}});
  return records;
}

PluginRecord PluginHost::find(PluginKind kind, std::string_view name) {
  return impl_->record_of(impl_->index_of(kind, name));
}

std::unique_ptr<Sink> PluginHost::make_sink(std::string_view name, const Options& options) {
  if (const auto own = impl_->own_sinks.find(name); own != impl_->own_sinks.end()) return own->second(options);
  auto sink = impl_->make<Sink>(PluginKind::sink, name, options);
  check_options(PluginKind::sink, name, options);
  return sink;
}

std::unique_ptr<Backend> PluginHost::make_backend(std::string_view name, const Options& options) {
  if (const auto own = impl_->own_backends.find(name); own != impl_->own_backends.end()) return own->second(options);
  return impl_->make<Backend>(PluginKind::backend, name, options);
}

void PluginHost::check_options(PluginKind kind, std::string_view name, const Options& options) {
  if (impl_->is_own(kind, name)) return;
  const std::size_t index = impl_->index_of(kind, name);
  std::vector<std::string> listed;
  for (const OptionInfo& option : impl_->load_once(index).options) listed.emplace_back(option.name);
  for (const std::string& key : options.asked())
    if (std::find(listed.begin(), listed.end(), key) == listed.end())
      throw Error(ErrorKind::environment,
                  fmt::format("{}: {} '{}' reads the option '{}', which it does not list: name it in MOE_DIAG_{}",
                              impl_->found[index].path.string(), name_of(kind), name, key,
                              kind == PluginKind::sink ? "SINK" : "BACKEND"));
  const auto unread = options.unread();
  if (unread.empty()) return;
  throw Error(ErrorKind::usage, fmt::format("{}: {}: plugin '{}': {}", unread.front()->where, options.owner(), name,
                                            unknown("key", unread.front()->key, listed)));
}

}  // namespace moe_diag
