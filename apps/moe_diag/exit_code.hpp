// SPDX-License-Identifier: MIT
#pragma once

namespace moe_diag {

// Of several that apply, the first in the order usage, environment, falsified, untested, held.
enum ExitCode : int {
  exit_held = 0,         // every falsifier held; or the command did what it was asked
  exit_falsified = 1,    // something falsified or vacuous
  exit_usage = 2,        // the contract or the command line is wrong
  exit_untested = 3,     // nothing falsified, something untested
  exit_environment = 4,  // something failed while running: plugin refused, corrupt model, full disk
};

}  // namespace moe_diag
