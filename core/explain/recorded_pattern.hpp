// SPDX-License-Identifier: MIT
#pragma once

#include <string>

#include "core/explain/examiner.hpp"
#include "core/plan/plan.hpp"
#include "core/recording/cache_fit.hpp"
#include "core/recording/numerics_fit.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// The steps of a recording that fail, together, may say more than each by itself:
// - a stage is wrong, and so is every step that reads it: it was recorded wrong, for the engine went on with right
// values;
// - every product is wrong, and nothing else: the engine multiplied other weights, or other numerics than it is said
// to;
// - attention is wrong, and right with keys and values in another type than is said of the cache. Names these causes in
// the verdict's diagnosis. Returns why nothing can be said of the engine before the recording or the contract is
// mended; empty: it can.
std::string name_recorded_patterns(Verdict& verdict, const Plan& plan, const Examiner& examined, int lane,
                                   const NumericsFit& fit, const CacheFit& cache);

// "wrong in calls of 1, 3 and 7 rows only, right in those of 16 and 64": whether the failing positions of a divergence
// are told from the others by the calls that computed them; empty: they are not.
std::string text_of_calls(const Verdict& verdict, const Divergence& divergence, const Recording& recording,
                          const std::vector<int>& requests);

}  // namespace moe_diag
