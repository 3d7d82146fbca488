// SPDX-License-Identifier: MIT
#include "core/run/call_files.hpp"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <utility>

#include "core/api/output_file.hpp"
#include "core/gguf/split_files.hpp"

namespace moe_diag {
namespace {

// What a file is, or where one that is not there would be.
struct FileIdentity {
  dev_t device = 0;
  ino_t inode = 0;
  std::string name;  // in the folder of that inode; empty: that inode itself

  friend bool operator==(const FileIdentity&, const FileIdentity&) = default;
};

// None of what cannot be found out: writing it fails, with a message of its own.
std::optional<FileIdentity> identity_of(const std::string& path) {
  struct stat status {};
  if (::stat(path.c_str(), &status) == 0) return FileIdentity{status.st_dev, status.st_ino, ""};
  try {
    const OutputPlace place = find_output(path);
    if (::stat(place.folder().c_str(), &status) != 0) return std::nullopt;
    return FileIdentity{status.st_dev, status.st_ino, std::filesystem::path(place.target).filename().string()};
  } catch (const Error&) {
    return std::nullopt;
  }
}

bool is_same(const std::string& a, const std::string& b) {
  const std::optional<FileIdentity> of_a = identity_of(a);
  return of_a && of_a == identity_of(b);
}

bool is_device(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && (S_ISCHR(status.st_mode) || S_ISBLK(status.st_mode));
}

// A file that was opened by whoever started the process: it must not be replaced behind it.
bool is_standard_output(const std::string& path) {
  struct stat file {
  }, standard{};
  if (::stat(path.c_str(), &file) != 0 || !S_ISREG(file.st_mode)) return false;
  for (const int descriptor : {STDOUT_FILENO, STDERR_FILENO})
    if (::fstat(descriptor, &standard) == 0 && standard.st_dev == file.st_dev && standard.st_ino == file.st_ino)
      return true;
  return false;
}

}  // namespace

void CallFiles::read(std::string who, const std::string& path) {
  inputs_.push_back({std::move(who), path == "-" ? "/dev/stdin" : path});
}

void CallFiles::read(const Contract& contract) {
  read("the contract", contract.path);
  if (!contract.model.gguf.empty()) read("the model", contract.model.gguf);
  for (const std::string& part : split_parts(contract.model.gguf))
    if (part != contract.model.gguf) read("a part of the model", part);
  for (const PromptSpec& prompt : contract.prompts)
    if (!prompt.file.empty()) read(fmt::format("the tokens of prompt '{}'", prompt.id), prompt.file);
  for (const FalsifierSpec& falsifier : contract.falsifiers)
    if (!falsifier.digest.empty()) read(fmt::format("the digests of {}", falsifier.id), falsifier.digest);
  if (!contract.step) return;
  for (const auto* values : {&contract.step->inputs, &contract.step->expected})
    for (const GivenValues& given : *values) read(fmt::format("the values of {}", name_of(given.stage)), given.file);
}

void CallFiles::write_folder(const std::string& who, const std::string& path) const {
  std::error_code error;
  const std::filesystem::path folder = std::filesystem::canonical(path, error);
  if (error) return;  // it is not there
  for (const CallFile& input : inputs_) {
    const std::filesystem::path file = std::filesystem::canonical(input.path, error);
    if (error || std::mismatch(folder.begin(), folder.end(), file.begin(), file.end()).first != folder.end()) continue;
    throw Error(ErrorKind::usage, fmt::format("{}: {} would replace {}, {}, which is read; choose another place", path,
                                              who, input.who, input.path));
  }
}

void CallFiles::write(std::string who, const std::string& path) {
  for (const CallFile& input : inputs_)
    if (is_same(path, input.path))
      throw Error(ErrorKind::usage, fmt::format("{}: {} would replace {}, {}, which is read; choose another place",
                                                path, who, input.who, input.path));
  if (is_device(path)) return;
  for (const CallFile& output : outputs_)
    if (is_same(path, output.path))
      throw Error(ErrorKind::usage, fmt::format("{}: {} would be written over {}, {}, by the same call; choose another "
                                                "place",
                                                path, who, output.who, output.path));
  if (is_standard_output(path) && find_output(path).kind == OutputPlace::Kind::file)
    throw Error(ErrorKind::usage, fmt::format("{}: {} would replace the file that this command prints to; choose "
                                              "another place, or /dev/stdout",
                                              path, who));
  outputs_.push_back({std::move(who), path});
}

}  // namespace moe_diag
