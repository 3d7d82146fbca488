// SPDX-License-Identifier: MIT
#include "core/conformance/walked_lane.hpp"

#include <fmt/format.h>

#include <cmath>
#include <numeric>
#include <utility>

#include "core/compare/measure.hpp"
#include "core/conformance/made_inputs.hpp"
#include "core/conformance/step_checks.hpp"
#include "core/lane/assisted_lane.hpp"

namespace moe_diag {

WalkedLane::WalkedLane(std::unique_ptr<TriedLane> lane) : own_(lane.get()), lane_(std::move(lane)) {
  const Program& program = model().program;
  for (const Step& step : program) computes_.push_back(own_->computes(step));
  cached_.resize(program.size());
  if (!left_to_plain_operators(*own_, program).empty())
    lane_ = std::make_unique<AssistedLane>(std::move(lane_), model().config(), program);
}

void WalkedLane::begin(std::span<const std::int32_t> sequence, Portion portion, std::int64_t id) {
  const auto tokens = sequence.subspan(static_cast<std::size_t>(portion.first), static_cast<std::size_t>(portion.rows));
  lane_->begin({tokens, portion.first, static_cast<int>(sequence.size()), portion.head_first, id});
}

host::Values WalkedLane::read_rows(Site site, int from) {
  const Tensor values = lane_->read(site, {from, own_->pass().rows() - from});
  if (!values) throw Error(ErrorKind::environment, "gave nothing");
  return host::values_of(values);
}

// Rows from that one of the pass on. An input that is cached counts from position 0.
StepInputs WalkedLane::inputs_before(std::size_t index, int from) {
  const Step& step = model().program[index];
  const Pass& pass = own_->pass();
  StepInputs inputs;
  inputs.total = pass.total;
  inputs.positions.resize(static_cast<std::size_t>(pass.rows() - from));
  std::iota(inputs.positions.begin(), inputs.positions.end(), pass.first + from);
  inputs.tokens.assign(pass.tokens.begin() + from, pass.tokens.end());
  const std::vector<Site> sites = inputs_of(model().program, {step.out[0], step.layer});
  for (std::size_t i = 0; i < sites.size(); ++i) {
    inputs.in[i] = read_rows(sites[i], from);
    const CacheUse* use = step.cached(i);
    if (!use) continue;
    host::Values& all = cached_[index];
    all.resize(static_cast<std::size_t>(pass.first * model().config().cache_width(use->cache, step.layer)));
    const host::Values rows = cached_columns(model(), step, i, inputs.in[i], inputs.positions.size());
    all.insert(all.end(), rows.begin(), rows.end());
    inputs.in[i] = all;
  }
  return inputs;
}

// Runs the step, and says what is wrong with it.
std::string WalkedLane::judge(std::size_t index, int from) {
  const Step& step = model().program[index];
  JudgedStep judged;
  judged.model = &model();
  judged.step = &step;
  judged.what = fmt::format("{}, in a pass", own_->place());
  judged.inputs = inputs_before(index, from);
  own_->run({&step, 1});
  for (std::size_t o = 0; o < step.out.size(); ++o) {
    judged.right.push_back(compute(step, model().config(), judged.inputs, nullptr, o));
    judged.out.push_back(own_->read_all({step.out[o], step.layer}));
  }
  const LaneNumerics numerics = numerics_of(*own_);
  return failure_of(judged, numerics, on_inputs_of(numerics));
}

std::string WalkedLane::walk(std::span<const std::int32_t> sequence, Portion portion, std::int64_t id) {
  begin(sequence, portion, id);
  const Program& program = model().program;
  for (std::size_t i = 0; i < program.size(); ++i) {
    const int from = is_of_head(program[i].out[0]) ? portion.head_first : 0;
    if (!computes_[i] || !own_->has({program[i].out[0], program[i].layer}, {portion.first + from, portion.rows - from}))
      lane_->run({&program[i], 1});
    else if (std::string failure = judge(i, from); !failure.empty())
      return failure;
  }
  return "";
}

std::vector<CopiedTensor> WalkedLane::watch(std::span<const std::int32_t> sequence, Portion portion, std::int64_t id) {
  begin(sequence, portion, id);
  std::vector<CopiedTensor> seen;
  for (const Step& step : model().program) {
    lane_->run({&step, 1});
    for (const Stage stage : step.out) {
      const Tensor tensor = lane_->read({stage, step.layer}, {0, portion.rows});
      seen.push_back(tensor ? CopiedTensor(tensor) : CopiedTensor());
    }
  }
  return seen;
}

CopiedTensor WalkedLane::run_unobserved(std::span<const std::int32_t> sequence, Portion portion, std::int64_t id) {
  begin(sequence, portion, id);
  Program program = model().program;
  for (Step& step : program) step.want = false;
  program.back().want = true;
  lane_->run(program);
  return own_->read_all(logits());
}

CopiedTensor WalkedLane::run_observed(std::span<const std::int32_t> sequence, std::int64_t id,
                                      bool (*is_wanted)(std::size_t)) {
  begin(sequence, {0, static_cast<int>(sequence.size())}, id);
  Program program = model().program;
  for (std::size_t i = 0; i < program.size(); ++i) program[i].want = is_wanted(i) || i + 1 == program.size();
  for (std::size_t at = 0, end = 0; at < program.size(); at = end) {
    while (!program[end++].want) {
    }
    lane_->run(std::span(program).subspan(at, end - at));
    for (const Stage stage : program[end - 1].out)
      lane_->read({stage, program[end - 1].layer}, {0, own_->pass().rows()});
  }
  return own_->read_all(logits());
}

std::string difference_of(const CopiedTensor& found, const CopiedTensor& expected, std::span<const double> allowed,
                          int first_position) {
  const Tensor a = found.view(), b = expected.view();
  const std::int64_t width = a.shape.row();
  for (std::int64_t row = 0; row < a.shape[0]; ++row) {
    Measure m;
    m.add(a, row * width, b, row * width, width);
    const double error = m.rel_l2(), most = allowed[static_cast<std::size_t>(row)];
    if (error <= most || (std::isinf(most) && m.finite())) continue;
    const std::int64_t at = m.first_nonfinite_new >= 0 ? m.first_nonfinite_new : std::max<std::int64_t>(m.max_index, 0);
    return fmt::format(
        "position {}, value {} of {}: expected {:.9g}, found {:.9g}; relative error {:.2e}, allowed {:.2e}",
        first_position + row, at, width, b.value(row * width + at), a.value(row * width + at), error, most);
  }
  return "";
}

}  // namespace moe_diag
