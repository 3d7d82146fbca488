// SPDX-License-Identifier: MIT
#include "core/file/bounded_file.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <system_error>

#include "core/api/error.hpp"

namespace moe_diag {
namespace {

[[noreturn]] void refuse(const std::string& message) { throw Error(ErrorKind::usage, message); }

}  // namespace

std::string read_bounded(const std::string& path, std::size_t largest) {
  std::error_code error;
  if (std::filesystem::is_directory(path, error)) refuse("it is a folder");
  if (!std::filesystem::exists(path, error)) refuse("there is no such file");
  if (!std::filesystem::is_regular_file(path, error)) refuse("it is no regular file");  // a pipe could block for ever
  std::ifstream in(path, std::ios::binary | std::ios::ate);
  if (!in) refuse("no permission");
  const auto size = static_cast<std::size_t>(std::max<std::streamoff>(in.tellg(), 0));
  if (size > largest) refuse(fmt::format("larger than {} MiB", largest >> 20));
  std::string bytes(size, '\0');
  in.seekg(0);
  in.read(bytes.data(), static_cast<std::streamsize>(size));
  if (in.bad()) refuse("reading failed");
  bytes.resize(static_cast<std::size_t>(in.gcount()));
  return bytes;
}

}  // namespace moe_diag
