// SPDX-License-Identifier: MIT
#include "core/repro/case_folder.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <system_error>

#include "core/api/npy.hpp"
#include "core/api/output_file.hpp"
#include "core/repro/case_text.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

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

}  // namespace

CaseFolder::CaseFolder(const std::string& place, bool overwrite)
    : NewFolder(place, overwrite,
                {"cases", std::string(case_contract), [](const std::string& at) { return why_kept(at); }}) {}

void CaseFolder::write(const std::string& name, const GivenValues& values) const {
  OutputFile file(make_room(name), OutputFile::Mode::create);
  const std::string header = npy_header(npy_type(values.dtype), values.shape);
  file.write(header.data(), header.size());
  file.write(values.bytes.data(), values.bytes.size());
  file.close();
}

}  // namespace moe_diag
