// SPDX-License-Identifier: MIT
#include "core/ops/predicted.hpp"

#include <array>
#include <cmath>
#include <utility>

#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

// Square of the error of rounding to `bits` bits of significand: uniform within half a unit in the last place, for
// values whose logarithms are spread evenly: a mean square of 3 / (8 ln 2) / 12 units.
double rounding(int bits) { return square(0.2124 * std::ldexp(1.0, 1 - bits)); }

constexpr int bits_f64 = 53, bits_f32 = 24, bits_f16 = 11, bits_bf16 = 8;

// Blocks of n activations in steps of 1/127 of the largest, which of n bell-shaped values is sqrt(2 ln n) of their rms.
double quantising(int n) { return 2 * std::log(n) / (12 * square(127)); }

// q8_k pairs types as llama.cpp's CPU backend does, q8_1 keeps blocks of 32 and leaves weights without whole numbers
// to f32.
double activation_error(OperandReading reading, BlockType type) {
  if (reading == OperandReading::bf16) return rounding(bits_bf16);
  if (reading == OperandReading::as_they_are || type == BlockType::f32) return 0;
  const bool q8_k = reading == OperandReading::q8_k;
  switch (type) {
    case BlockType::f16: return q8_k ? rounding(bits_f16) : 0;
    case BlockType::bf16: return q8_k ? rounding(bits_bf16) : 0;
    case BlockType::q8_0: return quantising(32) + (q8_k ? rounding(bits_f16) : 0);
    case BlockType::q4_k:
    case BlockType::q6_k: return quantising(q8_k ? 256 : 32);
    default: return 0;  // no kernel multiplies its integers
  }
}

double weight_error(OperandReading reading, BlockType type, double unit) {
  if (reading == OperandReading::bf16 && type != BlockType::bf16) return rounding(bits_bf16);
  return info(type).scales.count == 2 && reading == OperandReading::as_they_are ? unit : 0;  // of a difference or a sum
}

}  // namespace

double squared_error_of_product(const Step& step, const ModelConfig&, const PredictedNumerics& numerics, int) {
  const auto [reading, unit] = numerics;
  double sum = 0, rows = 0;
  for (const Weight* w : step.weights) {
    const double operands = (step.biases.size() > 0 ? 2 : 1) * unit + activation_error(reading, w->type) +
                            weight_error(reading, w->type, unit);
    sum += static_cast<double>(w->rows) * (operands + walk(w->cols) * unit);
    rows += static_cast<double>(w->rows);
  }
  return sum / rows;
}

std::optional<double> expected_error(std::string_view numerics, const Step& step, const ModelConfig& config, int keys) {
  constexpr std::array<std::pair<std::string_view, OperandReading>, 5> known{{{"f64", OperandReading::as_they_are},
                                                                              {"f32", OperandReading::as_they_are},
                                                                              {"bf16", OperandReading::bf16},
                                                                              {"q8_k", OperandReading::q8_k},
                                                                              {"q8_1", OperandReading::q8_1}}};
  const double unit = rounding(numerics == "f64" ? bits_f64 : bits_f32);
  for (const auto& [name, reading] : known)
    if (name == numerics) return std::sqrt(operator_of(step).squared_error(step, config, {reading, unit}, keys));
  return std::nullopt;
}

}  // namespace moe_diag
