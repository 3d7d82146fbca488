// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>
#include <string_view>

namespace moe_diag {

// One line on a terminal, written over itself; nothing when stderr is not a terminal.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();

  bool is_visible() const { return terminal_; }

  void clear();

  // `done` of `total` of what `what` names; the rest of the time is estimated from its own start.
  void show(std::string_view what, std::int64_t done, std::int64_t total);

 private:
  const bool terminal_;
  bool shown_ = false;
  std::int64_t last_done_ = 0;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace moe_diag
