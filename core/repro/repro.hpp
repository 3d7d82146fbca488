// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/run/earlier_verdict.hpp"
#include "core/run/run.hpp"

namespace moe_diag {

struct ReproOptions {
  std::string falsifier;   // id; empty: that of the first divergence
  std::string out;         // folder of the case
  bool overwrite = false;  // a case that is there may be replaced
  bool cases = false;      // written as for a kernel of one's own, which `moe-diag judge` judges
  RunOptions run;          // progress, interruption and the tool's version of the runs this takes
};

// What became of it.
struct Repro {
  bool written = false;
  std::string text;  // lines for a person: what the case is, or why no step fails alone
};

// Writes the step behind a falsified claim as a case of its own: a contract with all that it needs, which fails when it
// is run alone. The contract of the verdict is run again to see what the step read; the case is run before it is put in
// place, and put there whole or not at all. Throws Error: usage when the verdict does not speak of such a step, or its
// contract or model have changed; absent when the model or a lane is not there; environment when something failed.
Repro reproduce(const EarlierVerdict& verdict, PluginHost& host, const ReproOptions& options);

}  // namespace moe_diag
