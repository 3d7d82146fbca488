// SPDX-License-Identifier: MIT
#pragma once

#include <span>
#include <string_view>
#include <vector>

#include "core/ops/hypothesis.hpp"
#include "core/ops/operator.hpp"
#include "core/ops/rounding.hpp"

namespace moe_diag {

// The knowledge that hypotheses are made from.
struct StepKnowledge {
  const StepCase& step_case;
  const ModelConfig& config;
  std::span<const Step> program;

  const Step& step() const { return *step_case.step; }
};

// The types that round alike, as one text: F16 and TF32 keep as many bits, and what Q8_1 and Q8_K do is also done by
// formats without a name.
inline std::string_view names_of(host::Rounding rounding) {
  switch (rounding) {
    case host::Rounding::bf16: return "BF16";
    case host::Rounding::f16: return "F16 or TF32";
    case host::Rounding::q8_0: return "8 bits in blocks of 32 with F16 scales, as Q8_0";
    case host::Rounding::q8_1: return "8 bits in blocks of 32 with F32 scales, as Q8_1";
    case host::Rounding::q8_k: return "8 bits in blocks of 256 with F32 scales, as Q8_K";
    default: return host::name_of(rounding);
  }
}

// Hypotheses about the values themselves, whatever the operator: zeros, a factor, places, bits.
std::vector<Hypothesis> value_hypotheses(const StepKnowledge& known, const FailingUnits& failing);

// About the weights of an operator that has some, and what is multiplied with them.
std::vector<Hypothesis> weight_hypotheses(const StepKnowledge& known, const FailingUnits& failing);

// About how a product adds, and how it decodes a block of that weight. Part of the above.
std::vector<Hypothesis> product_hypotheses(const StepKnowledge& known, const Weight& weight,
                                           const FailingUnits& failing);

// The values that a product multiplies for a unit: its row of the first input, or its slot's.
host::Values input_of(const StepKnowledge& known, const StepUnit& unit, std::int64_t cols);

// About the operator's own arithmetic.
std::vector<Hypothesis> operator_hypotheses(const StepKnowledge& known, const FailingUnits& failing);

}  // namespace moe_diag
