// SPDX-License-Identifier: MIT
#include "core/compare/expected.hpp"

#include <array>
#include <cmath>
#include <utility>

namespace moe_diag {
namespace {

// docs/numerics.md derives each formula. Errors are relative and independent, so their squares are added.
double square(double x) { return x * x; }

// Square of the error of rounding to `bits` bits of significand: uniform within half a unit in the last place, for
// values whose logarithms are spread evenly: a mean square of 3 / (8 ln 2) / 12 units.
double rounding(int bits) { return square(0.2124 * std::ldexp(1.0, 1 - bits)); }

constexpr int bits_f64 = 53, bits_f32 = 24, bits_f16 = 11, bits_bf16 = 8;

// Typical size of the scores and of the router logits that carry the probability: the error of their rounding is that
// of the exponential's exponent.
constexpr double logit_size = 4;

constexpr int partial_sums = 16;  // of the cpu lanes' rule; other rules differ by less than the bound allows

// What numerics do with the activations that a product with a weight reads.
enum class Reading { as_they_are, bf16, q8_k, q8_1 };

// Roundings of a sum of n terms of either sign, in 16 partial sums and a tree of four levels.
double walk(std::int64_t n) { return static_cast<double>(n) / partial_sums / 2 + 4; }

// The same of n terms of one sign, of which the errors of the partial sums average out.
double positive_walk(std::int64_t n) { return static_cast<double>(n) / square(partial_sums) / 3 + 15.0 / 8; }

// Blocks of n activations in steps of 1/127 of the largest, which of n bell-shaped values is sqrt(2 ln n) of their rms.
double quantising(int n) { return 2 * std::log(n) / (12 * square(127)); }

// q8_k pairs types as llama.cpp's CPU backend does, q8_1 keeps blocks of 32 and leaves weights without whole numbers
// to f32.
double activation_error(Reading reading, BlockType type) {
  if (reading == Reading::bf16) return rounding(bits_bf16);
  if (reading == Reading::as_they_are || type == BlockType::f32) return 0;
  const bool q8_k = reading == Reading::q8_k;
  switch (type) {
    case BlockType::f16: return q8_k ? rounding(bits_f16) : 0;
    case BlockType::bf16: return q8_k ? rounding(bits_bf16) : 0;
    case BlockType::q8_0: return quantising(32) + (q8_k ? rounding(bits_f16) : 0);
    default: return quantising(q8_k ? 256 : 32);
  }
}

double weight_error(Reading reading, BlockType type, double unit) {
  if (reading == Reading::bf16 && type != BlockType::bf16) return rounding(bits_bf16);
  return type == BlockType::q4_k && reading == Reading::as_they_are ? unit : 0;
}

// Several weights write side by side: the mean over all rows.
double product(const Step& step, Reading reading, double unit) {
  double sum = 0, rows = 0;
  for (const Weight* w : step.weights) {
    const double operands = unit + activation_error(reading, w->type) + weight_error(reading, w->type, unit);
    sum += static_cast<double>(w->rows) * (operands + walk(w->cols) * unit);
    rows += static_cast<double>(w->rows);
  }
  return sum / rows;
}

// Square of the error of all other steps, in roundings of a stage value: of what is read, of each operation, of sums.
double roundings(const Step& step, const ModelConfig& config, int keys) {
  const double used = config.used;
  switch (step.op) {
    case Op::embed: return 1;
    case Op::rms_norm: return 3 + 2 + (2 + positive_walk(step.params.width)) / 4;
    case Op::rope: return 4;
    case Op::scores: return 4 + walk(config.head_dim);
    case Op::softmax: return (step.params.causal ? keys : config.experts) > 1 ? square(logit_size) + 3 : 1;
    case Op::mix: return 2 + keys / 2.0;
    case Op::add: return 2;
    case Op::topk: return used > 1 ? 2 + (used - 1) / 2 : 1;
    case Op::swiglu: return 6;
    case Op::weigh: return 3;
    case Op::combine: return used > 1 ? 1 + (used + 1) / 2 : 1;
    case Op::linear:
    case Op::expert_linear: break;  // product()
  }
  return 1;
}

}  // namespace

std::optional<double> expected_error(std::string_view numerics, const Step& step, const ModelConfig& config, int keys) {
  constexpr std::array<std::pair<std::string_view, Reading>, 5> known{{{"f64", Reading::as_they_are},
                                                                       {"f32", Reading::as_they_are},
                                                                       {"bf16", Reading::bf16},
                                                                       {"q8_k", Reading::q8_k},
                                                                       {"q8_1", Reading::q8_1}}};
  const double unit = rounding(numerics == "f64" ? bits_f64 : bits_f32);
  for (const auto& [name, reading] : known) {
    if (name != numerics) continue;
    if (step.op == Op::linear || step.op == Op::expert_linear) return std::sqrt(product(step, reading, unit));
    return std::sqrt(roundings(step, config, keys) * unit);
  }
  return std::nullopt;
}

}  // namespace moe_diag
