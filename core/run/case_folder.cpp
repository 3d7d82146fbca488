// SPDX-License-Identifier: MIT
#include "core/run/case_folder.hpp"

#include <fmt/format.h>
#include <sys/stat.h>

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <system_error>

#include "core/api/error.hpp"
#include "core/api/npy.hpp"
#include "core/api/output_file.hpp"
#include "core/run/case_text.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const std::string& place, const std::string& what, const std::string& why) {
  throw Error(ErrorKind::environment, fmt::format("{}: {}: {}; choose another place with --out", place, what, why));
}

bool is_case(const fs::path& folder) {
  std::error_code error;
  return fs::is_regular_file(folder / case_contract, error) && fs::is_regular_file(folder / case_model, error);
}

// "case" of "case/" and of "case".
std::string without_slash(std::string path) {
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  return path;
}

}  // namespace

CaseFolder::CaseFolder(const std::string& place, bool overwrite) : place_(without_slash(place)) {
  if (place_.empty()) throw Error(ErrorKind::usage, "--out: expected the name of a folder, found nothing");
  std::error_code error;
  replaces_ = fs::exists(fs::symlink_status(place_, error));
  if (replaces_ && !overwrite)
    throw Error(ErrorKind::usage, fmt::format("{}: is there already; choose another --out, or replace it with "
                                              "--overwrite",
                                              place_));
  if (replaces_ && (!fs::is_directory(place_, error) || !is_case(place_)))
    throw Error(ErrorKind::usage, fmt::format("{}: is there and is no case: --overwrite replaces cases only; choose "
                                              "another --out",
                                              place_));
  error.clear();  // not to be there is right
  const fs::path parent = fs::path(place_).parent_path();
  if (!parent.empty()) fs::create_directories(parent, error);
  if (error) fail(place_, "cannot make its folder", error.message());
  path_ = place_ + ".partial-XXXXXX";
  if (!::mkdtemp(path_.data())) fail(place_, "cannot be written", std::strerror(errno));
  const mode_t mask = ::umask(0);
  ::umask(mask);
  ::chmod(path_.c_str(), 0777 & ~mask);
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

// What is replaced goes only when the new one is in its place.
void CaseFolder::put_in_place() {
  std::error_code error;
  const std::string replaced = path_ + ".replaced";
  if (replaces_) fs::rename(place_, replaced, error);
  if (error) fail(place_, "cannot be replaced", error.message());
  fs::rename(path_, place_, error);
  if (error) {
    const std::string why = error.message();
    if (replaces_) fs::rename(replaced, place_, error);
    fail(place_, "cannot be put in place", why);
  }
  if (replaces_) fs::remove_all(replaced, error);
}

}  // namespace moe_diag
