// SPDX-License-Identifier: MIT
#include "core/forward/given_inputs.hpp"

#include <algorithm>

#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

bool has(const std::vector<Stage>& stages, Stage stage) {
  return std::find(stages.begin(), stages.end(), stage) != stages.end();
}

}  // namespace

std::vector<Stage> stages_given(const Step& step) {
  std::vector<Stage> stages(step.in.begin(), step.in.end());
  const bool chooses = operator_of(step).chooses_experts;
  const bool by_expert = !chooses && step.out.size() > 0 && is_per_expert(step.out[0]);
  const auto add = [&](Role role) {
    const Stage stage = step.out[0].sibling(role);
    if (!has(stages, stage)) stages.push_back(stage);
  };
  if (by_expert) add(Role::choice);
  if (chooses) add(Role::router_scores);
  return stages;
}

bool is_of_all_positions(const Step& step, Stage stage) {
  for (std::size_t i = 0; i < step.in.size(); ++i)
    if (step.in[i] == stage && (step.cached(i) || has_state(step))) return true;
  return false;
}

std::vector<Stretch> GivenInputs::stretches() const {
  const Stretch looked_at{spec_.first, spec_.count};
  if (!reads_cache(step_) || spec_.first == 0) return {looked_at};
  return {{0, spec_.first}, looked_at};
}

// The head's stages have every row where the step is one of them; else only the one that each pass has.
Pass GivenInputs::pass_over(const TokenSequence& sequence, Stretch stretch) const {
  const bool of_head = is_of_head(step_.out[0]);
  return moe_diag::pass_over(sequence, stretch, of_head ? stretch.first : stretch.end() - 1);
}

void GivenInputs::feed(const Pass& pass, RunningLane& lane) {
  for (const GivenValues& values : spec_.inputs) {
    const Rows rows{0, pass.rows()};
    const int first = pass.first - (is_of_all_positions(step_, values.stage) ? 0 : spec_.first);
    Tensor tensor{nullptr, values.dtype, config_.shape_of({values.stage, step_.layer}, rows.count, pass.total)};
    if (first >= 0) {
      const std::size_t row = static_cast<std::size_t>(tensor.shape.row()) * size_of(values.dtype);
      tensor.data = values.bytes.data() + static_cast<std::size_t>(first) * row;
    } else {
      zeros_.resize(std::max(zeros_.size(), static_cast<std::size_t>(tensor.shape.count())));
      tensor.data = zeros_.data();
    }
    lane.write({values.stage, step_.layer}, rows, tensor);
  }
}

}  // namespace moe_diag
