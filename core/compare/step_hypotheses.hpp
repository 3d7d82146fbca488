// SPDX-License-Identifier: MIT
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "core/compare/step_units.hpp"
#include "core/model/host_ops.hpp"

namespace moe_diag {

// What hypotheses are made from.
struct StepKnowledge {
  const StepCase& step_case;
  const Model& model;
  const Program& program;

  const Step& step() const { return *step_case.step; }
  const ModelConfig& config() const { return model.config(); }
};

using FailingUnits = std::vector<const StepUnit*>;  // of one part, at least one

// A wrong computation that may be what the lane did, and what it gives. One of the two functions is set.
struct Hypothesis {
  StepCause cause = StepCause::plain_operator;
  std::string text;
  double factor = 1;
  double work = 1;  // multiplications an element

  // All elements of a unit; empty when the computation is not possible there.
  std::function<host::Values(const StepUnit&)> row = {};
  // Chosen elements of units of one part: [units, elements].
  std::function<host::Values(const FailingUnits&, std::span<const std::int64_t>)> elements = {};
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
  }
  return {};
}

// Hypotheses about the values themselves, whatever the operator: zeros, a factor, places, bits.
std::vector<Hypothesis> value_hypotheses(const StepKnowledge& known, const FailingUnits& failing);

// About the weights of an operator that has some, and what is multiplied with them.
std::vector<Hypothesis> weight_hypotheses(const StepKnowledge& known, const FailingUnits& failing);

// About the operator's own arithmetic.
std::vector<Hypothesis> operator_hypotheses(const StepKnowledge& known, const FailingUnits& failing);

// Whether the lane chose the experts that come after the best one, by its own probabilities.
bool chose_without_best(const StepCase& step_case, const ModelConfig& config, int row);

}  // namespace moe_diag
