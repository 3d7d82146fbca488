// SPDX-License-Identifier: MIT
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/kernel/judged_case.hpp"

namespace moe_diag {

struct JudgeRequest {
  std::string folder = {};                 // that `cases` wrote
  std::string model = {};                  // where the model is now; empty: where it was
  std::function<bool()> interrupted = {};  // empty: never
};

// All cases of a folder, judged. Not copied: each case points to its entry in the index.
struct JudgedKernel {
  CaseIndex index;
  std::vector<JudgedCase> cases;
  std::string no_causes;                // why no cause was looked for; empty: it was, or nothing fails
  std::vector<std::string> row_counts;  // what the numbers of rows have to do with it

  JudgedKernel() = default;
  JudgedKernel(JudgedKernel&&) = default;
  JudgedKernel& operator=(JudgedKernel&&) = default;

  std::size_t count(CaseOutcome outcome) const;
};

// Throws Error(usage) for a folder that holds no cases, or cases that cannot be read. What is wrong with a kernel's
// file is an outcome of its case.
JudgedKernel judge_kernel(const JudgeRequest& request);

}  // namespace moe_diag
