// SPDX-License-Identifier: MIT
#include "core/file/new_folder.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <utility>
#include <vector>

#include "core/api/error.hpp"
#include "core/api/output_file.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& place, const std::string& what, const std::string& why) {
  throw Error(ErrorKind::environment, fmt::format("{}: {}: {}; choose another place with --out", place, what, why));
}

// "case" of "case/" and of "case".
std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

NewFolder::NewFolder(const std::string& place, bool overwrite, FolderContent content)
    : place_(without_slash(place)), content_(std::move(content)) {
  if (place_.empty()) throw Error(ErrorKind::usage, "--out: expected the name of a folder, found nothing");
  const OutputPlace found = check_folder(place_, "--out");
  std::error_code error;
  target_ = found.target;
  if (found.kind == OutputPlace::Kind::folder) {
    target_ = fs::canonical(target_, error).string();  // "." has no name that a new folder could be given
    fills_ = !error && fs::is_empty(target_, error);
    if (error) fail(place_, "cannot be read", error.message());
    if (!fills_) refuse_to_replace(overwrite);
  }
  fs::create_directories(found.folder(), error);
  if (error) fail(place_, "cannot make its folder", error.message());
  path_ = target_ + (fills_ ? "/.partial-XXXXXX" : ".partial-XXXXXX");
  if (!::mkdtemp(path_.data())) fail(place_, "cannot be written", std::strerror(errno));
  const mode_t mask = ::umask(0);
  ::umask(mask);
  ::chmod(path_.c_str(), 0777 & ~mask);
}

void NewFolder::refuse_to_replace(bool overwrite) {
  if (!overwrite)
    throw Error(ErrorKind::usage, fmt::format("{}: is there already; choose another --out, or replace it with "
                                              "--overwrite",
                                              place_));
  if (const std::string why = content_.why_kept(target_); !why.empty())
    throw Error(ErrorKind::usage,
                fmt::format("{}: {}: --overwrite replaces {} only; choose another --out", place_, why, content_.nouns));
  replaces_ = true;
}

NewFolder::~NewFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void NewFolder::empty() const {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error)) fs::remove_all(entry.path(), error);
  if (error) fail(place_, "cannot be written", error.message());
}

std::string NewFolder::make_room(const std::string& name) const {
  const std::string path = *this / name;
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  if (error) fail(place_, "cannot be written", error.message());
  return path;
}

void NewFolder::write(const std::string& name, std::string_view text) const {
  OutputFile file(make_room(name), OutputFile::Mode::replace);
  file.write(text.data(), text.size());
  file.close();
}

std::uint64_t NewFolder::bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(path_))
    if (entry.is_regular_file()) bytes += entry.file_size();
  return bytes;
}

// An empty folder that is there stays, as somebody may be in it. The last file makes it complete.
void NewFolder::fill() {
  std::error_code error;
  std::vector<fs::path> names;
  for (const auto& entry : fs::directory_iterator(path_, error)) names.push_back(entry.path().filename());
  std::partition(names.begin(), names.end(), [&](const fs::path& name) { return name != content_.last; });
  for (std::size_t i = 0; i < names.size() && !error; ++i)
    fs::rename(fs::path(path_) / names[i], fs::path(target_) / names[i], error);
  if (error) fail(place_, "not all of it could be put in place", error.message());
}

// The old folder goes only when the new one is in its place.
void NewFolder::put_in_place() {
  if (fills_) return fill();
  std::error_code error;
  const std::string replaced = path_ + ".replaced";
  if (replaces_) fs::rename(target_, replaced, error);
  if (error) fail(place_, "cannot be replaced", error.message());
  fs::rename(path_, target_, error);
  if (error) {
    const std::string why = error.message();
    if (replaces_) fs::rename(replaced, target_, error);
    fail(place_, "cannot be put in place", why);
  }
  if (replaces_) fs::remove_all(replaced, error);
}

}  // namespace moe_diag
