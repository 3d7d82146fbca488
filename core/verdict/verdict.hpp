// SPDX-License-Identifier: MIT
#pragma once

#include <array>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "core/compare/measure.hpp"
#include "core/compare/part_gains.hpp"
#include "core/compare/routing.hpp"
#include "core/contract/contract.hpp"
#include "core/verdict/divergence.hpp"

namespace moe_diag {

enum class Outcome {
  held,       // every sample satisfies the bound
  falsified,  // at least one does not
  untested,   // there was no sample to judge, or not all that the claim speaks of could be
  vacuous,    // held, but a control that must falsify it does not
};
std::string_view name_of(Outcome outcome);

// The position of a sample that is of a whole pass and of no stage.
inline constexpr int whole_pass = -1;

// One judged number, and where it stands.
struct Sample {
  int prompt = 0, position = 0;
  int expert = -1;  // -1: not of one expert
  Site site;
  double value = 0;
  Bound bound;              // that it has to meet
  Measure measure;          // of the metrics that compare values; else empty
  std::vector<Flip> flips;  // of routing_real_flips, real or not; of routing_flips those with a faulty id
};

// True when `a` is worse than `b`, each measured by its own bound: a NaN is worse than all, what fails than what holds,
// and then what lies farther beyond its bound, or less far within, in proportion to it. Of two that are alike, the one
// with more flips.
bool is_worse(const Sample& a, const Sample& b);

// A falsifier at one site of one prompt.
struct SiteResult {
  int prompt = 0;
  Site site;
  std::int64_t samples = 0, failing = 0;
  Sample worst, first_failing;  // the second only when something fails
  std::vector<int> failing_at;  // positions, each once
};

// What was measured several times of one prompt.
struct Spread {
  int prompt = 0;
  double median = 0, lowest = 0, highest = 0;
  int repeats = 0;
};

struct ControlResult {
  std::string fault;     // as the contract states it
  bool tripped = false;  // the falsifier was falsified, first at the site it had to be
  std::string message;   // what was seen
};

// Samples that would have been compared with values that are not finite, which say nothing about the lane judged.
struct NotJudged {
  std::int64_t samples = 0;
  Sample first;   // in forward order; only its place counts
  int lane = -1;  // that is not finite there
};

struct Judgement {
  const FalsifierSpec* spec = nullptr;
  bool is_local = false;  // the lane is fed by the one it is compared with: each error is of one step
  Outcome outcome = Outcome::untested;
  std::string reason;  // why it is untested or vacuous
  std::int64_t samples = 0, failing = 0;
  std::int64_t skipped_experts = 0;  // slots of the lane that have no counterpart in the other one
  std::vector<SiteResult> sites;     // as they were seen: prompt after prompt, in forward order
  std::vector<PartGain> parts;       // of spans: experts' parts of layers' updates that stand out; each failed a sample
  std::int64_t several_steps = 0;    // sites of passes not judged: a recording shows several steps at once there
  std::int64_t not_computed = 0;     // sites of passes not judged: nobody has what their steps read
  Site first_not_computed;
  std::int64_t undecided = 0;      // samples not judged: rounding may have chosen other experts in their rows
  std::int64_t without_floor = 0;  // samples of rows in which the floor's lane went through other experts
  NotJudged not_judged;
  std::array<std::int64_t, 3> flips{};  // of routing_real_flips, by FlipKind
  std::vector<ControlResult> controls;
  double seconds = 0;                // spent on it alone: judging its samples, running its controls
  bool allowed = false;              // it is untested, and that was allowed
  std::vector<std::string> remarks;  // what a person wants to know beside the numbers
  std::vector<Spread> spreads;       // of what was measured several times
  Explanation explanation;           // of a falsified one, once the run was diagnosed

  std::int64_t count(FlipKind kind) const { return flips[static_cast<std::size_t>(kind)]; }
  // The site that the report begins with: the first that fails. Where nothing is inherited, the first of those that lie
  // about as far beyond their bounds as the worst: by half of it at least. Null: none fails.
  const SiteResult* leading_failure() const;
  const SiteResult* worst() const;  // null: no sample
};

// A threshold that all samples would have met that have the same one as the first that fails, in the metric's
// direction, rounded to few digits; none when there is no such claim.
std::optional<Bound> bound_that_holds(const Judgement& judgement);

// What the report needs to know of a lane.
struct LaneReport {
  std::string name, backend, numerics, device, instruction_set, inputs, routing;
  std::string absent;
  bool unfed = false;           // only a lane that feeds it is missing
  std::string plain_operators;  // that compute what its backend does not; empty: none
  std::string engine;           // what its values are rounded to besides; empty: nothing
  std::string kernel, base;  // the operators that a kernel computes, and what computes the others; empty: all its own
};

struct PromptReport {
  std::vector<std::int32_t> tokens;  // of the prompt, then those that were generated
  int generated = 0;
  std::vector<std::string>
      texts;            // of the tokens, in quotes, empty for one without; none when the model has no vocabulary
  std::string stopped;  // why fewer tokens were generated than asked for; empty: all were
};

struct ModelReport {
  std::string source, digest;
  std::uint64_t bytes = 0;
  int layers = 0, experts = 0, used = 0;
  std::string absent;  // why there is no model; empty: there is one
};

// Something that was to be captured and was not there.
struct NotCaptured {
  std::string what;  // and why
  std::string lane;  // the lane that is absent; empty: the model
  bool allowed = false;
  int line = 0;  // of the contract, where it is asked for
};

// A site whose error grew since an earlier verdict, though it is within its bound.
struct Moved {
  std::size_t falsifier = 0;  // index into the verdict's judgements
  int prompt = 0;
  Site site;
  double before = 0, now = 0;  // the falsifier's worst value there
  double times = 0;            // the error, by the earlier one; infinite: there was none
};

// How long the parts of a run took, in seconds.
struct Timing {
  double open = 0, forward = 0, solo = 0, evidence = 0, explain = 0, controls = 0, total = 0;
  double digest = 0;  // of the model: waiting for it when all else was done
};

// All outcomes of a run.
struct Verdict {
  const Contract* contract = nullptr;
  ModelReport model;
  std::vector<PromptReport> prompts;  // as many as the contract has
  std::vector<LaneReport> lanes;
  std::vector<Judgement> judgements;
  Diagnosis diagnosis;                  // of what is falsified
  std::vector<LayerCoverage> coverage;  // of the layers whose experts anybody looked at
  std::vector<std::string> planted;     // faults of the contract, then of `run --inject`
  std::vector<std::string> injected;    // those of `run --inject` alone, in the form that it takes
  std::vector<NotCaptured> captured_nothing;
  std::vector<std::string> tensors;  // that are wrong at the first divergence, or that its step reads: "blk.6.... Q4_K"
  std::vector<std::string> outputs;  // sinks that completed their output, by name
  std::vector<std::string> sink_outputs;  // paths that sinks were opened for, as far as they say
  std::string baseline;                   // path of the earlier verdict that this one was compared with; empty: none
  std::vector<Moved> moved;               // since then, the farthest first
  std::string failure;                    // why the run ended early; empty: it did not
  bool failure_is_usage = false;          // it is the contract's or the command line's fault
  bool controls = false;                  // every control was run, too
  std::time_t started = 0;
  Timing timing;

  std::int64_t count(Outcome outcome) const;
  std::int64_t count_allowed() const;  // of those that are untested
  // The failing judgement whose leading failure comes first; null when nothing is falsified.
  const Judgement* first_divergence() const;
};

}  // namespace moe_diag
