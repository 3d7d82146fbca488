// SPDX-License-Identifier: MIT
#include "apps/moe_diag/interrupt.hpp"

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstdint>
#include <ctime>

namespace moe_diag {
namespace {

constexpr std::int64_t one_request_ms = 500;
std::atomic<std::int64_t> interrupted_ms = 0;  // when the first signal came; 0: none did
static_assert(std::atomic<std::int64_t>::is_always_lock_free, "a signal handler may not wait");

std::int64_t now_ms() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return std::int64_t{now.tv_sec} * 1000 + now.tv_nsec / 1'000'000 + 1;
}

// Two signals may arrive at once, in two threads. What sends a signal to a process and to its group, as timeout(1) and
// some CI runners do, asks once: the second signal is one that comes later.
void note(int signal) {
  const int error = errno;
  const std::int64_t now = now_ms();
  std::int64_t first = 0;
  if (!interrupted_ms.compare_exchange_strong(first, now) && now - first >= one_request_ms) {
    std::signal(signal, SIG_DFL);
    std::raise(signal);
  }
  errno = error;
}

}  // namespace

// Without SA_RESTART: who waits for the reader of a FIFO stops waiting.
void note_interrupts() {
  struct sigaction action {};
  action.sa_handler = note;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool is_interrupted() { return interrupted_ms != 0; }

}  // namespace moe_diag
