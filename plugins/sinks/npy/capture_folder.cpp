// SPDX-License-Identifier: MIT
#include "plugins/sinks/npy/capture_folder.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "core/api/output_file.hpp"
#include "plugins/sinks/shared/capture_index.hpp"

namespace moe_diag {

namespace fs = std::filesystem;

namespace {

constexpr const char* manifest_name = "manifest.json";
constexpr const char* mark_name = "incomplete";
constexpr std::string_view mark_text =
    "moe-diag: this capture is not complete.\n"
    "The run that writes it is still going, or was stopped before manifest.json could be written.\n"
    "`moe-diag run --overwrite` clears the folder and starts again.\n";

bool is_manifest(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  const auto json = nlohmann::json::parse(file, nullptr, false);
  return json.is_object() && json.value("format", nlohmann::json()) == capture_format;
}

// The arrays that a complete capture lists: its stages may be those of another architecture.
std::set<std::string> listed_in(const fs::path& manifest) {
  std::set<std::string> files;
  if (!fs::exists(manifest)) return files;
  std::ifstream file(manifest, std::ios::binary);
  const auto json = nlohmann::json::parse(file, nullptr, false);
  if (!json.is_object() || json.value("format", nlohmann::json()) != capture_format) return files;
  const auto tensors = json.find("tensors");
  if (tensors == json.end() || !tensors->is_array()) return files;
  for (const auto& tensor : *tensors)
    if (tensor.is_object() && tensor.contains("file") && tensor["file"].is_string())
      files.insert(tensor["file"].get<std::string>());
  return files;
}

bool is_mark(const fs::path& path) {
  const std::string_view first_line = mark_text.substr(0, mark_text.find('\n'));
  std::string line;
  std::ifstream file(path, std::ios::binary);
  return std::getline(file, line) && line == first_line;
}

bool is_layer_folder(std::string_view name) {
  const std::string_view prefix = "layer_";
  if (!name.starts_with(prefix) || name.size() == prefix.size()) return false;
  return name.find_first_not_of("0123456789", prefix.size()) == std::string_view::npos;
}

// The arrays that a capture may hold.
struct Known {
  Stages stages;
  std::set<std::string> listed;  // relative paths
};

bool is_array_name(const fs::path& relative, const Known& known, bool in_layer) {
  const std::string_view suffix = ".npy";
  const std::string file = relative.filename().string();
  std::string_view name = file;
  if (!name.ends_with(suffix)) return false;
  if (known.listed.count(relative.generic_string()) > 0) return true;
  name.remove_suffix(suffix.size());
  const Stage stage = known.stages.find(name);
  return stage && (info(stage).scope == Scope::layer) == in_layer;
}

// True for what a capture may hold at this place: <prompt>/<lane>/[layer_07/]<stage>.npy and the two files on top.
bool belongs(const fs::path& relative, const fs::file_status& status, const Known& known) {
  const std::vector<std::string> parts(relative.begin(), relative.end());
  const std::string& name = parts.back();
  if (fs::is_directory(status)) return parts.size() <= 2 || (parts.size() == 3 && is_layer_folder(name));
  if (!fs::is_regular_file(status)) return false;
  if (parts.size() == 1)
    return name == manifest_name || name == mark_name || name.starts_with(std::string(manifest_name) + ".partial-") ||
           name.starts_with(std::string(mark_name) + ".partial-");
  if (parts.size() == 3) return is_array_name(relative, known, false);
  return parts.size() == 4 && is_layer_folder(parts[2]) && is_array_name(relative, known, true);
}

struct Content {
  std::vector<fs::path> files, folders;  // sorted, so that a folder comes before what it holds
  fs::path foreign;                      // the first entry that no capture has; empty: none
};

Content content_of(const fs::path& root, Stages stages) {
  const Known known{stages, listed_in(root / manifest_name)};
  Content content;
  std::error_code error;
  fs::recursive_directory_iterator entry(root, error), end;
  for (; !error && entry != end; entry.increment(error)) {
    const fs::file_status status = entry->symlink_status();
    if (!belongs(entry->path().lexically_relative(root), status, known) &&
        (content.foreign.empty() || entry->path() < content.foreign))
      content.foreign = entry->path();
    (fs::is_directory(status) ? content.folders : content.files).push_back(entry->path());
  }
  if (error) throw output_error(root.string(), "cannot read the folder", error.value());
  std::sort(content.files.begin(), content.files.end());
  std::sort(content.folders.begin(), content.folders.end());
  return content;
}

void erase(const fs::path& path) {
  std::error_code error;
  if (!fs::remove(path, error) && error) throw output_error(path.string(), "cannot remove", error.value());
}

void mark_incomplete(const fs::path& root) { write_whole_file((root / mark_name).string(), mark_text); }

void refuse_foreign(const fs::path& root, const Content& content) {
  const bool complete = fs::exists(root / manifest_name), marked = fs::exists(root / mark_name);
  fs::path foreign = content.foreign;
  if (complete && !is_manifest(root / manifest_name)) foreign = root / manifest_name;
  if (marked && !is_mark(root / mark_name)) foreign = root / mark_name;
  if (!complete && !marked && foreign.empty()) foreign = content.files.front();
  if (foreign.empty()) return;
  throw Error(ErrorKind::usage,
              fmt::format("{}: not part of a capture of moe-diag, so {} is not cleared; move it away or choose another "
                          "folder (dir, --out)",
                          foreign.string(), root.string()));
}

}  // namespace

void CaptureFolder::claim(bool overwrite, Stages stages) const {
  const fs::path root(path_);
  claim_folder(path_, "dir, --out");
  const Content content = content_of(root, stages);
  if (!content.files.empty() || !content.foreign.empty()) {
    refuse_foreign(root, content);
    const std::string_view state = fs::exists(root / manifest_name) ? "a complete capture" : "an incomplete capture";
    if (!overwrite)
      throw Error(ErrorKind::usage,
                  fmt::format("{}: holds {} of an earlier run; replace it with --overwrite or choose another folder "
                              "(dir, --out)",
                              path_, state));
  }
  mark_incomplete(root);
  // The manifest goes first: from here on the folder is incomplete, and says so.
  erase(root / manifest_name);
  for (const fs::path& file : content.files)
    if (file != root / mark_name) erase(file);
  for (auto folder = content.folders.rbegin(); folder != content.folders.rend(); ++folder) erase(*folder);
}

void CaptureFolder::complete(std::string_view manifest) const {
  write_whole_file((fs::path(path_) / manifest_name).string(), manifest);
  erase(fs::path(path_) / mark_name);
}

}  // namespace moe_diag
