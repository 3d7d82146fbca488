// SPDX-License-Identifier: MIT
#pragma once

#include <chrono>
#include <cstdint>

#include "core/run/run.hpp"

namespace moe_diag {

// One line on a terminal, written over itself; nothing when stderr is not a terminal.
class ProgressLine {
 public:
  ProgressLine();
  ~ProgressLine();

  bool is_visible() const { return terminal_; }

  void clear();

  // Never more than one line of the terminal. The rest of the time is estimated from the start of what is shown.
  void show(const Progress& progress);

 private:
  const bool terminal_;
  bool shown_ = false;
  std::int64_t last_done_ = 0;
  std::chrono::steady_clock::time_point start_, last_;
};

}  // namespace moe_diag
