// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/new_sink.hpp"
#include "core/api/output_file.hpp"
#include "core/plugin/host.hpp"
#include "core/plugin/manifest.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t longest_name = 40;

// A name is part of file, class and target names, and a word of contracts.
void refuse_bad_name(const std::string& name) {
  const auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  if (!name.empty() && name.size() <= longest_name && name[0] >= 'a' && name[0] <= 'z' && name.back() != '_' &&
      name.find("__") == std::string::npos && std::all_of(name.begin(), name.end(), fits))
    return;
  throw Error(ErrorKind::usage,
              fmt::format("'{}' cannot be the name of a sink: wanted snake_case, lower-case letters, digits and single "
                          "'_' between them, at most {}, a letter first; such as expert_load",
                          name, longest_name));
}

void refuse_shipped_name(const std::string& name, PluginHost& host) {
  for (const PluginRecord& record : host.list())
    if (record.name == name)
      throw Error(ErrorKind::usage, fmt::format("there is a {} '{}' already, {}: choose another name",
                                                name_of(record.kind), name, record.path));
}

std::string pascal_case(const std::string& name) {
  std::string result;
  for (std::size_t i = 0; i < name.size(); ++i)
    if (name[i] != '_') result += i == 0 || name[i - 1] == '_' ? static_cast<char>(std::toupper(name[i])) : name[i];
  return result;
}

std::string replaced(std::string text, std::string_view from, const std::string& to) {
  for (std::size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size())
    text.replace(at, from.size(), to);
  return text;
}

std::string named(std::string_view text, const std::string& name) {
  return replaced(replaced(std::string(text), "my_name", name), "MyName", pascal_case(name));
}

// As a shell takes it.
std::string in_shell(const std::string& text) {
  const auto plain = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) || std::strchr("_./-+", c); };
  if (!text.empty() && std::all_of(text.begin(), text.end(), plain)) return text;
  return "'" + replaced(text, "'", "'\\''") + "'";
}

// Where the tree that this program is part of was installed; a build folder is none.
std::optional<fs::path> installed_prefix() {
  std::error_code error;
  const fs::path prefix = fs::read_symlink("/proc/self/exe", error).parent_path().parent_path();
  if (!fs::exists(prefix / "lib/cmake/moe_diag", error)) return std::nullopt;
  return prefix;
}

// Removes again what it has written unless it is told to keep it.
class NewFolder {
 public:
  explicit NewFolder(fs::path path) : path_(std::move(path)) {
    std::error_code error;
    if (fs::exists(fs::symlink_status(path_, error))) {
      if (!fs::is_directory(path_, error) || !fs::is_empty(path_, error) || error)
        throw Error(ErrorKind::usage, fmt::format("{}: is there already{}; name a new or an empty folder",
                                                  path_.string(), error ? ", " + error.message() : ""));
      return;
    }
    made_ = fs::create_directory(path_, error);
    if (error)
      throw Error(ErrorKind::usage, fmt::format("{}: cannot make the folder: {}; name one in a folder that is "
                                                "there and can be written",
                                                path_.string(), error.message()));
  }
  NewFolder(const NewFolder&) = delete;
  NewFolder& operator=(const NewFolder&) = delete;
  ~NewFolder() {
    std::error_code ignored;
    if (complete_) return;
    for (const fs::path& file : files_) fs::remove(file, ignored);
    if (made_) fs::remove(path_, ignored);
  }

  void write(const std::string& name, const std::string& text) {
    files_.push_back(path_ / name);
    write_whole_file(files_.back().string(), text);
  }
  void keep() { complete_ = true; }

 private:
  fs::path path_;
  std::vector<fs::path> files_;
  bool made_ = false, complete_ = false;
};

void write_new_sink(const std::string& name, const std::string& folder, PluginHost& host) {
  refuse_bad_name(name);
  if (folder.empty()) throw Error(ErrorKind::usage, "DIR is empty: name the folder of the project");
  refuse_shipped_name(name, host);
  NewFolder project(folder);
  for (const TemplateFile& file : new_sink_files()) project.write(named(file.name, name), named(file.text, name));
  project.keep();
  const std::string at = in_shell(folder);
  const std::optional<fs::path> prefix = installed_prefix();
  fmt::print("{}: a sink '{}', its contract and its tests. Build and try it:\n", folder, name);
  fmt::print("  cmake -S {0} -B {0}/build -DCMAKE_PREFIX_PATH={1}\n", at,
             prefix ? in_shell(prefix->string()) : "<where moe-diag is installed>");
  fmt::print("  cmake --build {0}/build\n  ctest --test-dir {0}/build --output-on-failure\n", at);
  fmt::print("{} goes on from there.\n",
             prefix ? (*prefix / "share/moe-diag/docs/write-a-sink.md").string() : "docs/write-a-sink.md");
}

}  // namespace

void add_new(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("new", "Begin a plugin: write a project that builds and runs at once");
  command->require_subcommand(1);
  CLI::App* sink = command->add_subcommand("sink", "A sink of your own, with a contract and tests");
  auto name = std::make_shared<std::string>(), folder = std::make_shared<std::string>();
  sink->add_option("NAME", *name, "What contracts will call it, in snake_case")->required();
  sink->add_option("DIR", *folder, "Folder of the project: a new or an empty one")->required();
  sink->footer(
      "The project is built against this installation of moe-diag. docs/write-a-sink.md goes on from there.\n\n"
      "Example:\n"
      "  moe-diag new sink expert_load expert_load");
  sink->callback([&context, name, folder] {
    PluginHost host(context.plugin_dirs);
    write_new_sink(*name, *folder, host);
  });
}

}  // namespace moe_diag
