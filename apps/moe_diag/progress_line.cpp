// SPDX-License-Identifier: MIT
#include "apps/moe_diag/progress_line.hpp"

#include <fmt/format.h>
#include <unistd.h>

#include <cstdio>

namespace moe_diag {
namespace {
constexpr auto shortest_wait = std::chrono::milliseconds(100);
}

ProgressLine::ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressLine::~ProgressLine() { clear(); }

void ProgressLine::clear() {
  if (shown_) fmt::print(stderr, "\r\033[K");
  shown_ = false;
}

void ProgressLine::show(std::string_view what, std::int64_t done, std::int64_t total) {
  if (!terminal_) return;
  const auto now = std::chrono::steady_clock::now();
  if (done == 0 || done < last_done_) start_ = now;  // a new walk has begun
  last_done_ = done;
  if (shown_ && now - last_ < shortest_wait) return;
  last_ = now;
  shown_ = true;
  const double spent = std::chrono::duration<double>(now - start_).count();
  fmt::print(stderr, "\r\033[K{}: {} of {}", what, done, total);
  if (done > 0)
    fmt::print(stderr, ", {:.0f} s left", spent / static_cast<double>(done) * static_cast<double>(total - done));
  std::fflush(stderr);
}

}  // namespace moe_diag
