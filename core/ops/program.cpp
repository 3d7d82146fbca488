// SPDX-License-Identifier: MIT
#include "core/ops/program.hpp"

#include <fmt/format.h>

#include <algorithm>

#include "core/api/error.hpp"
#include "core/ops/operator.hpp"

namespace moe_diag {

Stage ProgramBuilder::stage(std::string_view name) const {
  const Stage stage = config_.stages.find(name);
  if (!stage) throw Error(ErrorKind::environment, fmt::format("the architecture has no stage '{}'", name));
  return stage;
}

Params& ProgramBuilder::add(int layer, Op op, const Names& in, const Names& roles, const Names& out) {
  Step& step = program_.emplace_back();
  step.op = op;
  step.layer = layer;
  step.params = operator_of(op).params;
  for (const std::string_view name : in) step.in.push_back(stage(name));
  for (const std::string_view name : out) step.out.push_back(stage(name));
  std::vector<const Weight*> biases;
  for (const std::string_view role : roles) {
    const Weight* weight = weight_of_(role, layer);
    if (!weight) weight = weight_of_(role, -1);
    if (!weight) throw Error(ErrorKind::environment, fmt::format("the architecture has no weight '{}'", role));
    step.weights.push_back(weight);
    biases.push_back(operator_of(op).adds_biases ? weight_of_(fmt::format("{}.bias", role), layer) : nullptr);
  }
  if (std::any_of(biases.begin(), biases.end(), [](const Weight* bias) { return bias != nullptr; }))
    for (const Weight* bias : biases) step.biases.push_back(bias);
  return step.params;
}

void ProgramBuilder::norm(int layer, std::string_view in, std::string_view role, std::string_view out, int width,
                          int offset) {
  add(layer, Op::rms_norm, {in}, {role}, {out}) = RmsNormParams{offset, width, config_.rms_eps};
}

void ProgramBuilder::read_cache(std::string_view name, int input, int column) {
  const Cache cache = config_.caches.find(name);
  if (!cache) throw Error(ErrorKind::environment, fmt::format("the architecture has no cache '{}'", name));
  program_.back().caches.push_back({cache, input, column});
}

}  // namespace moe_diag
