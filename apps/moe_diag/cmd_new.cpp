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
#include "apps/moe_diag/new_files.hpp"
#include "core/api/output_file.hpp"
#include "core/plugin/host.hpp"
#include "core/plugin/manifest.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

constexpr std::size_t longest_name = 40;

// A name is part of file, class and target names, and a word of contracts.
void refuse_bad_name(const std::string& name, std::string_view kind) {
  const auto fits = [](char c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; };
  if (!name.empty() && name.size() <= longest_name && name[0] >= 'a' && name[0] <= 'z' && name.back() != '_' &&
      name.find("__") == std::string::npos && std::all_of(name.begin(), name.end(), fits))
    return;
  throw Error(ErrorKind::usage,
              fmt::format("'{}' cannot be the name of a {}: wanted snake_case, lower-case letters, digits and single "
                          "'_' between them, at most {}, a letter first; such as expert_load",
                          name, kind, longest_name));
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

// MY-NAME: as ids of falsifiers are written.
std::string id_of(std::string name) {
  for (char& c : name) c = c == '_' ? '-' : static_cast<char>(std::toupper(c));
  return name;
}

std::string named(std::string_view text, const std::string& name) {
  return replaced(replaced(replaced(std::string(text), "my_name", name), "MyName", pascal_case(name)), "MY-NAME",
                  id_of(name));
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

// A project to be written, with the names that its files get.
struct NewProject {
  std::string_view kind, folder;  // "sink", "new_sink"
  std::vector<std::pair<std::string, std::string>> files =
      {};  // "new_kernel/gpu.cuh", and as what; none: all of the folder
  std::string numerics = {};
  std::string_view holds;  // beside the plugin: "its contract and its tests"
  std::string_view page;   // that goes on from there
};

std::string_view template_text(const std::string& path) {
  for (const TemplateFile& file : template_files())
    if (fmt::format("{}/{}", file.folder, file.name) == path) return file.text;
  throw Error(ErrorKind::environment, "this program lacks " + path);
}

void write_files(const NewProject& project, const std::string& name, NewFolder& folder) {
  if (project.files.empty())
    for (const TemplateFile& file : template_files())
      if (file.folder == project.folder) folder.write(named(file.name, name), named(file.text, name));
  for (const auto& [from, to] : project.files)
    folder.write(named(to, name), replaced(named(template_text(from), name), "my_numerics", project.numerics));
}

void write_new(const NewProject& project, const std::string& name, const std::string& folder, PluginHost& host) {
  refuse_bad_name(name, project.kind);
  if (folder.empty()) throw Error(ErrorKind::usage, "DIR is empty: name the folder of the project");
  refuse_shipped_name(name, host);
  NewFolder files(folder);
  write_files(project, name, files);
  files.keep();
  const std::string at = in_shell(folder);
  const std::optional<fs::path> prefix = installed_prefix();
  fmt::print("{}: a {} '{}', {}. Build and try it:\n", folder, project.kind, name, project.holds);
  fmt::print("  cmake -S {0} -B {0}/build -DCMAKE_PREFIX_PATH={1}\n", at,
             prefix ? in_shell(prefix->string()) : "<where moe-diag is installed>");
  fmt::print("  cmake --build {0}/build\n  ctest --test-dir {0}/build --output-on-failure\n", at);
  fmt::print("{} goes on from there.\n",
             prefix ? (*prefix / "share/moe-diag" / project.page).string() : std::string(project.page));
}

// The project of a kernel: by what it computes at once, and where.
NewProject kernel_project(const std::string& span, bool is_cuda) {
  NewProject project{.kind = "kernel",
                     .folder = "new_kernel",
                     .numerics = is_cuda ? "bf16" : "f32",
                     .holds = "a contract that judges it at every layer of a model, and its test",
                     .page = "docs/wrap-your-engine.md"};
  const auto add = [&](const std::string& from, const std::string& to) {
    project.files.emplace_back("new_kernel/" + from, to);
  };
  add(span + ".yaml", "my_name.yaml");
  add(is_cuda ? "cuda_CMakeLists.txt" : "CMakeLists.txt", "CMakeLists.txt");
  add(span + (is_cuda ? "_cuda.cpp" : ".cpp"), "my_name_kernel.cpp");
  if (is_cuda) {
    add(span + ".cu", "my_name.cu");
    add("gpu.cuh", "gpu.cuh");
  }
  return project;
}

// The arguments that every kind of project takes.
struct NewOptions {
  std::string name, folder;
};

std::shared_ptr<NewOptions> add_name_and_folder(CLI::App& command) {
  auto options = std::make_shared<NewOptions>();
  command.add_option("NAME", options->name, "What contracts will call it, in snake_case")->required();
  command.add_option("DIR", options->folder, "Folder of the project: a new or an empty one")->required();
  return options;
}

void add_new_sink(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("sink", "A sink of your own, with a contract and tests");
  const auto options = add_name_and_folder(*command);
  command->footer(
      "The project is built against this installation of moe-diag. docs/write-a-sink.md goes on from there.\n\n"
      "Example:\n"
      "  moe-diag new sink expert_load expert_load");
  command->callback([&context, options] {
    PluginHost host(context.plugin_dirs);
    write_new(
        {.kind = "sink", .folder = "new_sink", .holds = "its contract and its tests", .page = "docs/write-a-sink.md"},
        options->name, options->folder, host);
  });
}

void add_new_kernel(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("kernel", "A kernel of your own, judged at every layer of a whole model");
  const auto options = add_name_and_folder(*command);
  auto span = std::make_shared<std::string>("expert_linear");
  auto is_cuda = std::make_shared<bool>(false);
  command
      ->add_option("--span", *span,
                   "What it computes at once: expert_linear, the matrix product of experts; or moe_ffn, all experts of "
                   "a layer from the router's choice to the sum")
      ->check(CLI::IsMember({"expert_linear", "moe_ffn"}))
      ->capture_default_str();
  command->add_flag("--cuda", *is_cuda, "On a GPU, in bf16");
  command->footer(
      "The project is built against this installation of moe-diag. docs/wrap-your-engine.md goes on from there.\n\n"
      "Examples:\n"
      "  moe-diag new kernel my_experts my_experts\n"
      "  moe-diag new kernel my_experts my_experts --span moe_ffn --cuda");
  command->callback([&context, options, span, is_cuda] {
    PluginHost host(context.plugin_dirs);
    write_new(kernel_project(*span, *is_cuda), options->name, options->folder, host);
  });
}

void add_new_backend(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("backend", "Your engine as a backend, taken over operator by operator");
  const auto options = add_name_and_folder(*command);
  command->footer(
      "The project is built against this installation of moe-diag. docs/wrap-your-engine.md goes on from there.\n\n"
      "Example:\n"
      "  moe-diag new backend my_engine my_engine");
  command->callback([&context, options] {
    PluginHost host(context.plugin_dirs);
    write_new({.kind = "backend",
               .folder = "new_backend",
               .files = {{"new_kernel/CMakeLists.txt", "CMakeLists.txt"},
                         {"new_backend/my_name.yaml", "my_name.yaml"},
                         {"new_backend/my_name_backend.cpp", "my_name_backend.cpp"}},
               .holds = "a contract that judges each of its steps, and its test",
               .page = "docs/wrap-your-engine.md"},
              options->name, options->folder, host);
  });
}

}  // namespace

void add_new(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand("new", "Begin a plugin: write a project that builds and runs at once");
  command->require_subcommand(1);
  add_new_sink(*command, context);
  add_new_kernel(*command, context);
  add_new_backend(*command, context);
}

}  // namespace moe_diag
