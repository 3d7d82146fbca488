// SPDX-License-Identifier: MIT
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "core/conformance/judged_step.hpp"
#include "core/conformance/tried_lane.hpp"

namespace moe_diag {

// Part of a sequence that one pass computes.
struct Portion {
  int first = 0, rows = 0;
  int head_first = 0;
};

// A lane on its way through the whole program. The plain operators compute what the backend does not.
class WalkedLane {
 public:
  explicit WalkedLane(std::unique_ptr<TriedLane> lane);

  TriedLane& own() { return *own_; }
  const TriedModel& model() const { return own_->model(); }
  Site logits() const { return {model().config().stages.of(Role::logits), -1}; }

  void begin(std::span<const std::int32_t> sequence, Portion portion, std::int64_t id);

  // Step by step, each output wanted and read. The first step of the backend that is wrong on the inputs that it had;
  // empty: none.
  std::string walk(std::span<const std::int32_t> sequence, Portion portion, std::int64_t id);
  // The same without judging: all stages that the lane has, in the order of the program.
  std::vector<CopiedTensor> watch(std::span<const std::int32_t> sequence, Portion portion, std::int64_t id);
  // In one span of which the last output alone is wanted; the logits.
  CopiedTensor run_unobserved(std::span<const std::int32_t> sequence, Portion portion, std::int64_t id);
  // In spans, each of which ends behind a step that `is_wanted`.
  CopiedTensor run_observed(std::span<const std::int32_t> sequence, std::int64_t id, bool (*is_wanted)(std::size_t));

  // What the cache that a step reads got so far, [positions, width].
  host::Values& cached(std::size_t step) { return cached_[step]; }

 private:
  std::string judge(std::size_t index, int from);
  StepInputs inputs_before(std::size_t index, int from);
  host::Values read_rows(Site site, int from);

  TriedLane* own_;
  std::unique_ptr<Lane> lane_;
  std::vector<bool> computes_;        // by step: the backend, alone
  std::vector<host::Values> cached_;  // by step
};

// Where the rows of two tensors of logits differ by more than allowed; empty: nowhere.
std::string difference_of(const CopiedTensor& found, const CopiedTensor& expected, std::span<const double> allowed,
                          int first_position = 0);

}  // namespace moe_diag
