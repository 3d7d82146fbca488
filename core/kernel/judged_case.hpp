// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "core/file/safetensors_file.hpp"
#include "core/kernel/case_index.hpp"
#include "core/text/numbers.hpp"

namespace moe_diag {

enum class CaseOutcome {
  held,
  falsified,
  untested,  // the kernel has written nothing
  refused,   // what it has written cannot be judged
};
std::string_view name_of(CaseOutcome outcome);

// A row of the output, or an expert's slot of it, beside what was expected.
struct JudgedVector {
  int row = 0, slot = -1, expert = -1;  // -1: not of one expert
  double error = 0, allowed = 0;        // relative L2; infinite for values that are not finite
  std::int64_t nonfinite = 0;           // values of it
  std::int64_t first_nonfinite = -1;    // column
  bool fails = false;

  double ratio() const { return error / allowed; }
};

// The failing vectors of a case, and what they have in common.
struct CaseFootprint {
  std::vector<int> rows;       // that fail, ascending
  std::vector<Range> columns;  // that are wrong in one of them
  std::int64_t wrong_columns = 0, all_columns = 0;
  bool only_zeros = false;   // every wrong value is 0
  std::vector<int> experts;  // that all failing vectors have, and no other one has; empty: nothing separates them
  std::int64_t nonfinite = 0;
};

struct JudgedCase {
  const KernelCase* of = nullptr;
  CaseOutcome outcome = CaseOutcome::untested;
  std::string why;  // it is untested or refused
  StoredTensor out, expected, choice;
  std::vector<StoredTensor> inputs;
  std::vector<JudgedVector> vectors;
  CaseFootprint footprint;
  std::string cause;        // in words; empty: none is known
  std::string unexplained;  // why none is known; empty: nobody has looked

  const JudgedVector* worst() const;  // null: nothing was compared
  const std::vector<double>& allowed() const { return of->allowed.at(out.dtype); }
  std::vector<std::int64_t> failing_rows() const { return {footprint.rows.begin(), footprint.rows.end()}; }
  const StoredTensor* input(std::string_view name) const;
};

// A vector fails when its error is beyond the allowed one, or when one element is off by this many times the allowed
// error of the larger of itself and the root mean square of all.
inline constexpr double alone_allowed = 20;

// Reads what the kernel has written for a case, and compares it with what was expected. Mistakes of the kernel's file
// are in the result; those of the cases' own files throw Error(usage).
JudgedCase judge_case(const CaseIndex& index, const KernelCase& of, const std::string& folder);

}  // namespace moe_diag
