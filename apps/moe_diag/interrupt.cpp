// SPDX-License-Identifier: MIT
#include "apps/moe_diag/interrupt.hpp"

#include <csignal>

namespace moe_diag {
namespace {

volatile std::sig_atomic_t interrupted = 0;

void note(int) {
  interrupted = 1;
  std::signal(SIGINT, SIG_DFL);
  std::signal(SIGTERM, SIG_DFL);
}

}  // namespace

void note_interrupts() {
  std::signal(SIGINT, note);
  std::signal(SIGTERM, note);
}

bool is_interrupted() { return interrupted != 0; }

}  // namespace moe_diag
