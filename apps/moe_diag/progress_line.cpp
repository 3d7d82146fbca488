// SPDX-License-Identifier: MIT
#include "apps/moe_diag/progress_line.hpp"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cstdio>
#include <string>

namespace moe_diag {
namespace {
constexpr auto shortest_wait = std::chrono::milliseconds(100);

// Columns of the terminal: a longer line would wrap, and its first half would stay.
std::size_t columns() {
  struct winsize size {};
  const bool known = ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}
}  // namespace

ProgressLine::ProgressLine() : terminal_(isatty(STDERR_FILENO) != 0) {}

ProgressLine::~ProgressLine() { clear(); }

void ProgressLine::clear() {
  if (shown_) fmt::print(stderr, "\r\033[K");
  shown_ = false;
}

void ProgressLine::show(const Progress& progress) {
  if (!terminal_) return;
  const auto [what, done, total, unit] = progress;
  const auto now = std::chrono::steady_clock::now();
  if (done == 0 || done < last_done_) start_ = now;  // a new walk has begun
  last_done_ = done;
  if (shown_ && total > 0 && now - last_ < shortest_wait) return;
  last_ = now;
  shown_ = true;
  std::string text(what);
  if (total > 0) text += fmt::format(": {} of {} {}", done, total, unit);
  const double spent = std::chrono::duration<double>(now - start_).count();
  if (done > 0)
    text += fmt::format(", {:.0f} s left", spent / static_cast<double>(done) * static_cast<double>(total - done));
  fmt::print(stderr, "\r\033[K{}", text.substr(0, columns() - 1));
  std::fflush(stderr);
}

}  // namespace moe_diag
