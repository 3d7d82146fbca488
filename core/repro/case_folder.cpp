// SPDX-License-Identifier: MIT
#include "core/repro/case_folder.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>
#include <vector>

#include "core/api/error.hpp"
#include "core/api/npy.hpp"
#include "core/api/output_file.hpp"
#include "core/repro/case_text.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& place, const std::string& what, const std::string& why) {
  throw Error(ErrorKind::environment, fmt::format("{}: {}: {}; choose another place with --out", place, what, why));
}

bool is_part_of_case(const fs::path& relative, const fs::file_status& status) {
  if (relative == "inputs" || relative == "expected") return fs::is_directory(status);
  if (!fs::is_regular_file(status)) return false;
  const fs::path folder = relative.parent_path();
  if (folder == "inputs" || folder == "expected") return relative.extension() == ".npy";
  return relative == case_contract || relative == case_model || relative == case_readme;
}

// Why the folder is not replaced: it is no case, or holds something else as well. Empty: it may be.
std::string why_kept(const fs::path& folder) {
  std::error_code error;
  if (!fs::is_regular_file(folder / case_contract, error) || !fs::is_regular_file(folder / case_model, error))
    return "is there and is no case";
  fs::recursive_directory_iterator entry(folder, error), end;
  for (; !error && entry != end; entry.increment(error))
    if (!is_part_of_case(entry->path().lexically_relative(folder), entry->symlink_status()))
      return fmt::format("is there and holds {}, which is no part of a case", entry->path().filename().string());
  return error ? "cannot be read: " + error.message() : "";
}

// "case" of "case/" and of "case".
std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

CaseFolder::CaseFolder(const std::string& place, bool overwrite) : place_(without_slash(place)) {
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

void CaseFolder::refuse_to_replace(bool overwrite) {
  if (!overwrite)
    throw Error(ErrorKind::usage, fmt::format("{}: is there already; choose another --out, or replace it with "
                                              "--overwrite",
                                              place_));
  if (const std::string why = why_kept(target_); !why.empty())
    throw Error(ErrorKind::usage,
                fmt::format("{}: {}: --overwrite replaces cases only; choose another --out", place_, why));
  replaces_ = true;
}

CaseFolder::~CaseFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

void CaseFolder::empty() const {
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(path_, error)) fs::remove_all(entry.path(), error);
  if (error) fail(place_, "cannot be written", error.message());
}

void CaseFolder::write(const std::string& name, const GivenValues& values) const {
  const std::string path = *this / name;
  std::error_code error;
  fs::create_directories(fs::path(path).parent_path(), error);
  if (error) fail(place_, "cannot be written", error.message());
  OutputFile file(path, OutputFile::Mode::create);
  const std::string header = npy_header(npy_type(values.dtype), values.shape);
  file.write(header.data(), header.size());
  file.write(values.bytes.data(), values.bytes.size());
  file.close();
}

void CaseFolder::write(const std::string& name, std::string_view text) const {
  OutputFile file(*this / name, OutputFile::Mode::replace);
  file.write(text.data(), text.size());
  file.close();
}

std::uint64_t CaseFolder::bytes() const {
  std::uint64_t bytes = 0;
  for (const auto& entry : fs::recursive_directory_iterator(path_))
    if (entry.is_regular_file()) bytes += entry.file_size();
  return bytes;
}

// An empty folder that is there stays, as somebody may be in it. The contract comes last: without it there is no case.
void CaseFolder::fill() {
  std::error_code error;
  std::vector<fs::path> names;
  for (const auto& entry : fs::directory_iterator(path_, error)) names.push_back(entry.path().filename());
  std::partition(names.begin(), names.end(), [](const fs::path& name) { return name != case_contract; });
  for (std::size_t i = 0; i < names.size() && !error; ++i)
    fs::rename(fs::path(path_) / names[i], fs::path(target_) / names[i], error);
  if (error) fail(place_, "not all of it could be put in place", error.message());
}

// What is replaced goes only when the new one is in its place.
void CaseFolder::put_in_place() {
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
