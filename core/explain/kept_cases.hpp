// SPDX-License-Identifier: MIT
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/compare/explain_step.hpp"

namespace moe_diag {

// A step in one pass, with copies of the tensors it is explained from.
struct KeptCase {
  StepCase step_case;
  std::vector<std::vector<std::byte>> values = {};  // of the tensors
  std::vector<std::int32_t> tokens = {};
};

// A step that fails, in the passes that were kept of one prompt.
struct KeptStep {
  int prompt = 0;
  double excess = 0;  // see Finding::excess()
  std::uint64_t bytes = 0;
  std::vector<KeptCase> passes = {};   // by position
  int other_prompt = -1;               // that fails there, too, in the pass of most rows; -1: none
  std::optional<KeptCase> other = {};  // that pass
};

// Steps that fail, until it is known which of them are explained. Where memory is short, those that err least beyond
// their expected error make room.
class KeptCases {
 public:
  using Place = std::pair<std::size_t, Site>;  // whose step, of which site

  explicit KeptCases(std::uint64_t most_bytes) : most_bytes_(most_bytes) {}

  // False for a case that would not fit if it were the only one.
  bool fits(const StepCase& step_case) const;

  // Keeps a pass of a place: of the first prompt that fails there, and of all others the one of most rows. `excess` is
  // that of all passes so far.
  void keep(Place place, int prompt, const StepCase& step_case, double excess);

  const std::map<Place, KeptStep>& all() const { return steps_; }
  void clear();

 private:
  void keep_other(KeptStep& step, int prompt, const StepCase& step_case);
  bool make_room(std::uint64_t bytes, Place place, double excess);

  const std::uint64_t most_bytes_;
  std::uint64_t bytes_ = 0;
  std::map<Place, KeptStep> steps_;
};

}  // namespace moe_diag
