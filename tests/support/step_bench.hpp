// SPDX-License-Identifier: MIT
#pragma once

#include <map>
#include <memory>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "core/compare/explain_step.hpp"
#include "core/ops/plain.hpp"
#include "core/ops/predicted.hpp"
#include "tests/support/lockstep.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {

// Steps of one model as an f64 lane and a lane fed by it computed them, ready to be explained or computed wrongly.
class StepBench {
 public:
  StepBench(const SyntheticSpec& spec, const std::string& numerics, std::vector<std::int32_t> tokens)
      : numerics_(numerics),
        tokens_(std::move(tokens)),
        run_(Model::synthetic(spec),
             {lane_spec("truth", {{"numerics", "f64"}}),
              lane_spec("step", {{"numerics", numerics}, {"inputs", "truth"}})},
             static_cast<int>(tokens_.size())),
        seen_(run_.record(tokens_)),
        program_(build_program(run_.model())) {}

  const Model& model() const { return run_.model(); }
  const ModelConfig& config() const { return run_.model().config(); }
  const Program& program() const { return program_; }
  const std::vector<std::int32_t>& tokens() const { return tokens_; }

  // The step with the clean lane's output. Tensors live as long as the bench.
  StepCase clean(const Step& step, Stage stage) {
    StepCase c;
    c.step = &step;
    c.stage = stage;
    for (std::size_t i = 0; i < step.in.size(); ++i) c.in[i] = input(step, step.in[i]);
    c.tokens = tokens_;
    c.a = seen_.at(1, {stage, step.layer}).tensor();
    c.b = seen_.at(0, {stage, step.layer}).tensor();
    if (is_per_expert(stage))
      c.routing_a = c.routing_b = seen_.at(0, {stage.sibling(Role::choice), step.layer}).tensor();
    c.numerics = numerics_;
    return c;
  }

  StepExplanation explain(const StepCase& c) const { return explain_step(c, model(), program_); }

 private:
  // What the lane read: the oracle's values, rounded to f32.
  Tensor input(const Step& step, Stage stage) {
    int layer = info(stage).scope != Scope::layer ? -1 : step.layer;
    if (is(stage, Role::layer_output)) layer = (step.layer < 0 ? config().layers : step.layer) - 1;
    const Tensor truth = seen_.at(0, {stage, layer}).tensor();
    if (truth.dtype == DType::i32) return truth;
    auto& rounded = rounded_[{stage, layer}];
    if (rounded.empty()) rounded.assign(truth.as<double>(), truth.as<double>() + truth.shape.count());
    return {rounded.data(), DType::f32, truth.shape};
  }

  std::string numerics_;
  std::vector<std::int32_t> tokens_;
  Lockstep run_;
  Recorder seen_;
  Program program_;
  std::map<Site, std::vector<float>> rounded_;
};

}  // namespace moe_diag::test
