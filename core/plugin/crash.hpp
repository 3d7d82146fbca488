// SPDX-License-Identifier: MIT
#pragma once

#include <string>

namespace moe_diag {

// When a plugin's code ends the process by a fatal signal (SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT), one line on
// standard error names the plugin's call, or, in a thread that the plugin made, its file. Then the signal takes the
// course that it had without us: the handler that was there before, else a core dump and the signal's exit status.

// Makes the loaded plugin known to the handlers, which are installed with the first. `symbol` is any address in it.
void watch_for_crashes(const std::string& path, const void* symbol);

// Once a thread is enough: a handler needs a stack of its own when the thread's is used up.
void give_signals_a_stack();

}  // namespace moe_diag
