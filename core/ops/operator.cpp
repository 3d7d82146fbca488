// SPDX-License-Identifier: MIT
#include "core/ops/operator.hpp"

#include <fmt/format.h>

#include "core/ops/add.hpp"
#include "core/ops/block_scales.hpp"
#include "core/ops/combine.hpp"
#include "core/ops/embed.hpp"
#include "core/ops/expert_linear.hpp"
#include "core/ops/linear.hpp"
#include "core/ops/mix.hpp"
#include "core/ops/rms_norm.hpp"
#include "core/ops/rope.hpp"
#include "core/ops/rounding.hpp"
#include "core/ops/scores.hpp"
#include "core/ops/sigmoid_gate.hpp"
#include "core/ops/softmax.hpp"
#include "core/ops/swiglu.hpp"
#include "core/ops/topk.hpp"
#include "core/ops/weigh.hpp"

namespace moe_diag {

const Operator& operator_of(Op op) {
  switch (op) {
    case Op::embed: return embed_op;
    case Op::rms_norm: return rms_norm_op;
    case Op::linear: return linear_op;
    case Op::rope: return rope_op;
    case Op::scores: return scores_op;
    case Op::softmax: return softmax_op;
    case Op::mix: return mix_op;
    case Op::add: return add_op;
    case Op::topk: return topk_op;
    case Op::expert_linear: return expert_linear_op;
    case Op::swiglu: return swiglu_op;
    case Op::weigh: return weigh_op;
    case Op::combine: return combine_op;
    case Op::sigmoid_gate: return sigmoid_gate_op;
  }
  throw Error(ErrorKind::environment, fmt::format("there is no operator {}", static_cast<int>(op)));
}

std::span<const double> StepRows::row(std::size_t input, std::size_t r) const {
  const std::span<const double> all = inputs.in[input];
  const std::size_t width = all.size() / count();
  return all.subspan(r * width, width);
}

host::Matrix StepRows::matrix(const Weight& weight) const {
  host::Matrix matrix(weight);
  if (is(Fault::Kind::wrong_type)) matrix.type = type_read(*fault, weight.type);
  matrix.transposed = is(Fault::Kind::transpose);
  if (is(Fault::Kind::wrong_scale) && host::has_scales(weight, weight.type)) matrix.scale_shift = -1;
  return matrix;
}

host::Values StepRows::operand() const {
  if (!is(Fault::Kind::quantise_activations)) return inputs.in[0];
  return host::rounded(inputs.in[0], fault->block == 32 ? host::Rounding::q8_0 : host::Rounding::q8_k);
}

int terms_of_sum(const Step& step, const ModelConfig& config) {
  return is_product(operator_of(step)) ? static_cast<int>(step.weights[0]->cols) : config.used;
}

host::Values compute(const Step& step, const ModelConfig& config, const StepInputs& inputs, const Fault* fault,
                     std::size_t output) {
  return operator_of(step).compute({step, config, inputs, fault, output});
}

Cost cost_of_weights(const Step& step, const ModelConfig&, double rows, int) {
  Cost cost;
  for (const Weight* w : step.weights) {
    const double size = static_cast<double>(w->cols) * static_cast<double>(w->rows);
    cost.decoded += size;
    cost.products += size * rows;
  }
  return cost;
}

}  // namespace moe_diag
