// SPDX-License-Identifier: MIT
#pragma once

#include <exception>
#include <string>
#include <utility>

namespace moe_diag {

// What an error means for the run, and so for the exit code.
enum class ErrorKind {
  usage,        // the contract or the command line is wrong: exit 2
  absent,       // something named is not there (model file, device, plugin): what needs it is untested
  environment,  // something that is there failed (corrupt file, full disk, refused plugin): exit 4
};

// The one exception of the project. The message is complete: what, where, expected, found, remedy.
class __attribute__((visibility("default"))) Error : public std::exception {
 public:
  Error(ErrorKind kind, std::string message) : kind_(kind), message_(std::move(message)) {}

  ErrorKind kind() const noexcept { return kind_; }
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  ErrorKind kind_;
  std::string message_;
};

}  // namespace moe_diag
