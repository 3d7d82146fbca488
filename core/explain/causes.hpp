// SPDX-License-Identifier: MIT
#pragma once

#include <utility>
#include <vector>

#include "core/explain/examiner.hpp"
#include "core/plan/plan.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// Names what the rerun showed: fills in the verdict's divergences, curves and non-finite sites, and why each falsifier
// that is falsified is. `compared` of the examiner has what the judged lanes and those they are held against measure at
// the first failing sample of such falsifiers.
void name_causes(Verdict& verdict, const Plan& plan, const Lanes& lanes, const Examiner& examined);

// The places, a lane and a site, of the divergences that the claims' errors come from: the one the report begins with,
// then those of the others.
std::vector<std::pair<int, Site>> leading_places(const Verdict& verdict);

// False when the rerun measured another error at the falsifier's first failing sample than the run did.
bool is_seen_again(const SideBySide& sides, const Verdict& verdict);

// Says why nothing was rerun, of the run and of each falsifier that is falsified. `oracle` is a lane's index, or -1.
void leave_unexplained(Verdict& verdict, const Plan& plan, int oracle, const std::string& why);

// Why no step can explain the falsifier: it speaks of whole passes, or of the oracle itself. Empty: one may.
std::string unexplainable(const WatchedFalsifier& watched, int oracle);

}  // namespace moe_diag
