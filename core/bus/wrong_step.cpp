// SPDX-License-Identifier: MIT
#include "core/bus/wrong_step.hpp"

#include <algorithm>
#include <cstdint>
#include <span>

#include "core/contract/fault.hpp"

namespace moe_diag {
namespace {

using host::Values;
using Kind = FaultSpec::Kind;

// One computation: of the rows, with or without the fault.
class Computation {
 public:
  Computation(const Step& step, const ModelConfig& config, const StepInputs& inputs, const FaultSpec* fault)
      : step_(step), config_(config), inputs_(inputs), fault_(fault) {}

  Values output() const {
    switch (step_.op) {
      case Op::linear: return linear();
      case Op::expert_linear: return expert_linear();
      case Op::rms_norm: return rms_norm();
      case Op::rope: return rope();
      case Op::scores: return scores();
      case Op::combine: return combine();
      default: throw Error(ErrorKind::environment, "no fault computes this operator");
    }
  }

 private:
  bool is(Kind kind) const { return fault_ && fault_->kind == kind; }
  std::size_t rows() const { return inputs_.positions.size(); }

  // The values of one row of an input.
  std::span<const double> row(std::size_t input, std::size_t r) const {
    const std::span<const double> all = inputs_.in[input];
    const std::size_t width = all.size() / rows();
    return all.subspan(r * width, width);
  }

  // Appends what `of_row` makes of each row.
  template <class OfRow>
  Values by_row(OfRow of_row) const {
    Values out;
    for (std::size_t r = 0; r < rows(); ++r) {
      const Values one = of_row(r);
      out.insert(out.end(), one.begin(), one.end());
    }
    return out;
  }

  host::Matrix matrix(const Weight& weight) const {
    host::Matrix matrix(weight);
    if (is(Kind::wrong_type)) matrix.type = type_read(*fault_, weight.type);
    matrix.transposed = is(Kind::transpose);
    return matrix;
  }

  // What a product reads of its first input.
  Values operand() const {
    if (!is(Kind::quantise_activations)) return inputs_.in[0];
    return host::rounded(inputs_.in[0], fault_->block == 32 ? host::Rounding::q8_0 : host::Rounding::q8_k);
  }

  Values linear() const {
    const Values x = operand();
    std::vector<Values> products;
    for (const Weight* weight : step_.weights) products.push_back(host::linear(matrix(*weight), x));
    return by_row([&](std::size_t r) {
      Values side_by_side;
      for (const Values& product : products) {
        const auto width = static_cast<std::ptrdiff_t>(product.size() / rows());
        const auto first = product.begin() + static_cast<std::ptrdiff_t>(r) * width;
        side_by_side.insert(side_by_side.end(), first, first + width);
      }
      return side_by_side;
    });
  }

  Values expert_linear() const {
    std::vector<std::int32_t> experts;
    for (double id : inputs_.in[1]) {
      const std::int32_t own = exists(id) ? static_cast<std::int32_t>(id) : 0;
      experts.push_back(is(Kind::wrong_expert) ? (own + 1) % config_.experts : own);
    }
    Values out = host::expert_linear(matrix(*step_.weights[0]), experts, config_.used, operand());
    const std::size_t width = out.size() / experts.size();
    for (std::size_t slot = 0; slot < experts.size(); ++slot)
      if (!exists(inputs_.in[1][slot]))
        std::fill_n(out.begin() + static_cast<std::ptrdiff_t>(slot * width), width, 0.0);
    return out;
  }

  // The lane's own choice may hold ids of no expert. Their slots are 0 with and without the fault, so that the lane
  // keeps its values there.
  bool exists(double id) const { return id >= 0 && id < config_.experts; }

  Values rms_norm() const {
    const Values weight = host::decode_row(host::Matrix(*step_.weights[0]), 0);
    const auto width = static_cast<std::size_t>(config_.shape_of(step_.out[0], 1, inputs_.total).row());
    const host::NormOptions options{step_.params.eps, !is(Kind::skip_norm) && !is(Kind::skip_qk_norm)};
    return by_row([&](std::size_t r) {
      return host::rms_norm(row(0, r).subspan(static_cast<std::size_t>(step_.params.offset), width), weight, options);
    });
  }

  Values rope() const {
    host::RopeOptions options{step_.params.theta};
    if (is(Kind::rope_theta)) options.theta = fault_->theta;
    if (is(Kind::rope_interleaved)) options.pairs = host::RopePairs::neighbours;
    const int later = is(Kind::off_by_one_position) ? 1 : 0;
    return by_row(
        [&](std::size_t r) { return host::rope(row(0, r), config_.head_dim, inputs_.positions[r] + later, options); });
  }

  Values scores() const {
    const Values keys = is(Kind::stale_kv) ? stale_keys() : inputs_.in[1];
    return by_row([&](std::size_t r) {
      const host::Attention attention{config_.heads, config_.kv_heads, config_.head_dim, inputs_.positions[r] + 1,
                                      inputs_.total};
      return host::scores(attention, row(0, r), keys, step_.params.scale);
    });
  }

  // At the fault's positions the key of the one before.
  Values stale_keys() const {
    const Values& keys = inputs_.in[1];
    const auto width = static_cast<std::size_t>(config_.kv_width());
    Values stale = keys;
    for (int position : fault_->positions.resolve(inputs_.total)) {
      const std::size_t at = static_cast<std::size_t>(position) * width;
      if (position > 0 && at < keys.size()) std::copy_n(keys.data() + (at - width), width, stale.data() + at);
    }
    return stale;
  }

  Values combine() const {
    return by_row([&](std::size_t r) {
      Values weighted(row(0, r).begin(), row(0, r).end());
      if (is(Kind::drop_top_expert))
        std::fill_n(weighted.begin(), weighted.size() / static_cast<std::size_t>(config_.used), 0.0);
      return host::combine(weighted, config_.used);
    });
  }

  const Step& step_;
  const ModelConfig& config_;
  const StepInputs& inputs_;
  const FaultSpec* fault_;
};

}  // namespace

Values compute(const Step& step, const ModelConfig& config, const StepInputs& inputs, const FaultSpec* fault) {
  return Computation(step, config, inputs, fault).output();
}

}  // namespace moe_diag
