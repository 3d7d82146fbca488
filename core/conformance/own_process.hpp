// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <filesystem>
#include <functional>
#include <string>

namespace moe_diag {

// The findings of a check.
struct Seen {
  std::string failure = {};  // empty: as promised
  std::string note = {};
  std::string not_tried = {};  // why it could not be looked at; empty: it was
  bool hangs = false;          // a call did not return
};

inline Seen failed(std::string what) { return {std::move(what)}; }
inline Seen not_tried(std::string why) { return {"", "", std::move(why)}; }

// The calls into a plugin as they begin, told to the process that waits: one that ends in a call, or never leaves it,
// cannot say it afterwards.
class CallTrail {
 public:
  explicit CallTrail(int fd) : fd_(fd) {}
  void at(std::string call);  // begins with a small letter and has one line
  const std::string& last_call() const { return last_call_; }

 private:
  int fd_;
  std::string last_call_ = "before its first call";
};

using Look = std::function<Seen(const std::filesystem::path& folder, CallTrail& trail)>;

// A plugin may end the process, change the locale or wait for ever: a check runs in a process of its own, in an empty
// folder that goes with it. An exception is a failure, and so is an end without a result. A process in which a call
// takes longer than the limit is killed.
Seen in_own_process(std::chrono::milliseconds call_limit, const Look& look);

}  // namespace moe_diag
