// SPDX-License-Identifier: MIT
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "core/bus/bus.hpp"
#include "core/compare/explain_step.hpp"
#include "core/compare/samples.hpp"
#include "core/explain/kept_cases.hpp"
#include "core/model/model.hpp"
#include "core/plan/plan.hpp"
#include "core/recording/spans.hpp"
#include "core/verdict/divergence.hpp"
#include "core/verdict/verdict.hpp"

namespace moe_diag {

// A lane that is looked into, and the lane that computes its steps on the oracle's inputs: a copy, or the lane itself.
struct Subject {
  int lane = -1, fed = -1;

  bool is_fed() const { return lane == fed; }
};

// A flip of one row.
struct RowFlip {
  int position = 0;
  Flip flip;
};

// What was seen at one site of one subject in one prompt, over all rows of all passes.
struct Finding {
  Site site;

  bool is_seen = false;  // the subject has the site

  // Errors of the step on the oracle's inputs. The worst row is that with the most expected errors.
  double step_error = 0, expected = 0;  // rel_l2 of the worst row, and what its numerics let it make there
  double times = 0;                     // the first in units of the second; infinite: not finite
  bool fails = false;
  int position = -1, expert = -1;  // of the first row that fails
  Nonfinite step_nonfinite;
  std::vector<RowFlip> step_flips;  // of moe_router_indices
  FootprintMaker footprint;         // of all passes
  std::optional<StepExplanation> explanation;
  std::optional<RecordedSpan> span;  // several steps of which only the last one's output is recorded
  int explained_passes = 0;          // passes whose error was explained, or kept to be explained

  // Errors of the lane as the contract has it.
  bool is_measured = false;                                      // its error is
  double free_error = std::numeric_limits<double>::quiet_NaN();  // rel_l2 of the worst row; NaN: not finite
  Nonfinite free_nonfinite;
  std::vector<RowFlip> flips;  // of moe_router_indices

  void note_free_error(double error);
  // How much of its output the step spoils beyond its expected error, from 0 to 1: all of it where values are not
  // finite, or where experts were chosen against their logits.
  double excess() const;
};

// The first, in their order, of those that exceed about as much as any: by half of the most at least. `excess_of` gives
// what one exceeds by.
template <class Iterator, class Excess>
Iterator foremost(Iterator begin, Iterator end, Excess excess_of) {
  double most = 0;
  for (Iterator at = begin; at != end; ++at) most = std::max<double>(most, excess_of(*at));
  return std::find_if(begin, end, [&](const auto& one) { return excess_of(one) >= most / 2; });
}

// Findings by prompt and subject; then by site.
using Findings = std::map<std::pair<int, int>, std::map<Site, Finding>>;

// A lane's error against the oracle at one sample of a falsifier, and that of the lane it is held against.
struct SideBySide {
  std::size_t falsifier = 0;
  int prompt = 0, position = 0, expert = -1;
  Site site;
  int lane = -1, against = -1;  // against: -1 when that is the oracle, or none
  bool is_measured = false;
  double lane_error = std::numeric_limits<double>::quiet_NaN();  // rel_l2
  double against_error = std::numeric_limits<double>::quiet_NaN();
};

// True for numerics whose expected error is known: steps of others cannot be judged, but for NaN and Inf.
bool has_expected_error(const RunningLane& lane, const Program& program, const ModelConfig& config);

// Looks at every stage of the oracle, of the subjects and of their fed lanes. Keeps numbers, and the tensors of steps
// that fail, as far as memory allows: which of them are worth explaining is known in the end.
class Examiner final : public Hook {
 public:
  struct Parts {
    const Plan& plan;
    const Model& model;
    const Lanes& lanes;
    int oracle;
    std::uint64_t most_kept;  // bytes of steps that fail
  };
  // `compared`: samples at which errors are measured. `curves`: stages whose free error is.
  Examiner(const Parts& parts, std::vector<Subject> subjects, std::vector<SideBySide> compared,
           std::vector<Stage> curves);

  bool wants(int prompt, int lane, Site site) const override;
  void show(Sighting& sighting) override;

  // Explains a few steps of each subject, and gives back what was kept of the others: first those at these places of a
  // lane, then those with the largest excess, of other stages before others of the same stage.
  void explain(const std::vector<std::pair<int, Site>>& first);

  // A falsifier's sample fails where several steps are shown at once: that they are wrong is known by the claim alone.
  void note_failing_span(const Sample& sample, int lane);

  const std::vector<Subject>& subjects() const { return subjects_; }
  const Findings& findings() const { return findings_; }
  const std::vector<SideBySide>& compared() const { return compared_; }
  int oracle() const { return parts_.oracle; }
  // True when a step of the lane, up to the site and the position, was seen to fail by itself.
  bool saw_failing_step(int prompt, int lane, Site up_to, int position) const;
  bool draws(Stage stage) const;  // it is one of the curves

 private:
  void look_at_step(std::size_t subject, Sighting& sighting, Finding& finding);
  void explain_or_keep(std::size_t subject, Sighting& sighting, StepCase& step_case, Finding& finding);
  void explain(std::size_t subject, const StepCase& step_case, Finding& finding) const;
  void explain_kept(const KeptCases::Place& place);
  void hold_against_other(std::size_t subject, const KeptStep& kept, Finding& finding) const;
  std::optional<KeptCases::Place> next_to_explain(std::size_t subject) const;
  bool look_at_span(const Subject& subject, Sighting& sighting, Finding& finding) const;
  void look_at_units(const StepCase& step_case, Finding& finding) const;
  std::vector<RowFlip> flips_of(int lane, Sighting& sighting) const;
  void look_at_lane(const Subject& subject, Sighting& sighting, Finding& finding) const;
  void compare_lanes(Sighting& sighting);
  StepCase case_of(const Subject& subject, Sighting& sighting) const;
  void add_inputs(const Subject& subject, Sighting& sighting, StepCase& step_case);
  Tensor read_from_cache(const Subject& subject, Sighting& sighting, const Step& step, const CacheUse& use);
  std::optional<double> error_of(int lane, Sighting& sighting, int row, int expert) const;

  const Parts parts_;
  const std::vector<Subject> subjects_;
  std::vector<SideBySide> compared_;
  const std::vector<Stage> curves_;
  Findings findings_;
  std::vector<std::vector<Site>> explained_;  // as subjects_: the steps
  KeptCases kept_;
  std::vector<double> cached_;  // input of the step at hand, when it comes from several passes
};

}  // namespace moe_diag
