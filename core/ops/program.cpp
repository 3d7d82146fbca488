// SPDX-License-Identifier: MIT
#include "core/ops/program.hpp"

namespace moe_diag {

Few<const Weight*, 3> ProgramBuilder::weights_of(const Few<std::string_view, 3>& roles, int layer) const {
  const auto weight = [&](std::size_t i) { return weight_of_(roles[i], layer); };
  switch (roles.size()) {
    case 0: return {};
    case 1: return {weight(0)};
    case 2: return {weight(0), weight(1)};
    default: return {weight(0), weight(1), weight(2)};
  }
}

Params& ProgramBuilder::add(int layer, Op op, Few<Stage, 2> in, Few<std::string_view, 3> roles, Few<Stage, 2> out) {
  Step& step = program_.emplace_back();
  step.op = op;
  step.layer = layer;
  step.in = in;
  step.weights = weights_of(roles, layer);
  step.out = out;
  return step.params;
}

void ProgramBuilder::norm(int layer, Stage in, std::string_view role, Stage out, int width, int offset) {
  Params& params = add(layer, Op::rms_norm, {in}, {role}, {out});
  params.offset = offset;
  params.width = width;
  params.eps = config_.rms_eps;
}

}  // namespace moe_diag
