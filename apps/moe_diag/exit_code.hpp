// SPDX-License-Identifier: MIT
#pragma once

#include "core/api/error.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Of several that apply, the first in the order usage, environment, falsified, untested, held.
enum ExitCode : int {
  exit_held = 0,         // every falsifier held; or the command did what it was asked
  exit_falsified = 1,    // something falsified, vacuous or worse than its baseline; or weights that are not sound
  exit_usage = 2,        // the contract or the command line is wrong
  exit_untested = 3,     // nothing falsified, something untested
  exit_environment = 4,  // something failed while running: plugin refused, corrupt model, full disk
};

inline ExitCode exit_code_of(const Verdict& verdict) {
  if (!verdict.failure.empty()) return verdict.failure_is_usage ? exit_usage : exit_environment;
  if (verdict.count(Outcome::falsified) + verdict.count(Outcome::vacuous) > 0 || !verdict.moved.empty())
    return exit_falsified;
  if (verdict.count(Outcome::untested) > verdict.count_allowed()) return exit_untested;
  for (const NotCaptured& missing : verdict.captured_nothing)
    if (!missing.allowed) return exit_untested;
  return exit_held;
}

// Of several runs.
inline ExitCode first_that_applies(ExitCode a, ExitCode b) {
  for (const ExitCode code : {exit_usage, exit_environment, exit_falsified, exit_untested})
    if (a == code || b == code) return code;
  return exit_held;
}

// Of a command that could not do its work. A file named on the command line that is not there is a wrong command line.
inline ExitCode exit_code_of(const Error& error) {
  return error.kind() == ErrorKind::environment ? exit_environment : exit_usage;
}

}  // namespace moe_diag
