// SPDX-License-Identifier: MIT
#include "apps/moe_diag/interrupt.hpp"

#include <atomic>
#include <csignal>

namespace moe_diag {
namespace {

std::atomic<bool> interrupted = false;
static_assert(std::atomic<bool>::is_always_lock_free, "a signal handler may not wait");

// Two signals may arrive at once, in two threads.
void note(int signal) {
  if (!interrupted.exchange(true)) return;
  std::signal(signal, SIG_DFL);
  std::raise(signal);
}

}  // namespace

// Without SA_RESTART: who waits for the reader of a FIFO stops waiting.
void note_interrupts() {
  struct sigaction action {};
  action.sa_handler = note;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool is_interrupted() { return interrupted; }

}  // namespace moe_diag
