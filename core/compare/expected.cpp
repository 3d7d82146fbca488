// SPDX-License-Identifier: MIT
#include "core/compare/expected.hpp"

#include <algorithm>
#include <cmath>

namespace moe_diag {
namespace {

// docs/numerics.md derives each formula. Errors are relative and independent, so their squares are added.
double square(double x) { return x * x; }

// Square of the error of rounding to `bits` bits of significand: uniform within half a unit in the last place, for
// significands spread as those of products are.
double rounding(int bits) { return square(0.2 * std::ldexp(1.0, 1 - bits)); }

constexpr int bits_f64 = 53, bits_f32 = 24, bits_f16 = 11, bits_bf16 = 8;

// Typical size of the scores and router logits that carry the probability.
constexpr double logit_size = 4;

constexpr int partial_sums = 16;  // of the cpu lanes' rule; other rules differ by less than the bound allows

// What numerics do with the activations that a product with a weight reads.
enum class Reading { as_they_are, bf16, q8 };

// Roundings of a sum of n terms of either sign, in 16 partial sums and a tree of four levels.
double walk(std::int64_t n) { return static_cast<double>(n) / partial_sums / 2 + 4; }

// The same of n terms of one sign, of which the errors of the partial sums average out.
double positive_walk(std::int64_t n) { return static_cast<double>(n) / square(partial_sums) / 3 + 4.0 / partial_sums; }

// Blocks of n activations in 255 steps of the largest; the largest of n bell-shaped values is sqrt(2 ln n) of their
// rms.
double quantising(int n) { return 2 * std::log(n) / (12 * square(127)); }

double activation_error(Reading reading, BlockType type) {
  if (reading == Reading::bf16) return rounding(bits_bf16);
  if (reading == Reading::as_they_are) return 0;
  switch (type) {
    case BlockType::f32: return 0;
    case BlockType::f16: return rounding(bits_f16);
    case BlockType::bf16: return rounding(bits_bf16);
    case BlockType::q8_0: return quantising(32) + rounding(bits_f16);
    case BlockType::q4_k:
    case BlockType::q6_k: return quantising(256);
  }
  return 0;
}

double weight_error(Reading reading, BlockType type, double unit) {
  if (reading == Reading::bf16 && type != BlockType::bf16) return rounding(bits_bf16);
  return type == BlockType::q4_k && reading == Reading::as_they_are ? unit : 0;
}

// Several weights write side by side: the mean over all rows.
double product(const Step& step, Reading reading, double unit) {
  double sum = 0, rows = 0;
  for (const Weight* w : step.weights) {
    const double input = unit, all = walk(w->cols) * unit;
    sum += static_cast<double>(w->rows) *
           (input + activation_error(reading, w->type) + weight_error(reading, w->type, unit) + all);
    rows += static_cast<double>(w->rows);
  }
  return sum / rows;
}

// In roundings of a stage value; `n` is what the step sums over.
double roundings(const Step& step, const ModelConfig& config, int keys) {
  const double n = keys;
  switch (step.op) {
    case Op::embed: return 1;
    case Op::rms_norm: return 3 + 2 + (2 + positive_walk(step.params.width)) / 4;
    case Op::rope: return 1 + 1 + 1 + 1;
    case Op::scores: return 2 + walk(config.head_dim) + 2;
    case Op::softmax: return (step.params.causal ? keys : config.experts) > 1 ? square(logit_size) + 3 : 1;
    case Op::mix: return 2 + n / 2;
    case Op::add: return 2;
    case Op::topk: return config.used > 1 ? 2 + (config.used - 1) / 2.0 : 1;
    case Op::swiglu: return 6;
    case Op::weigh: return 3;
    case Op::combine: return 1 + (config.used > 1 ? (config.used + 1) / 2.0 : 0);
    case Op::linear:
    case Op::expert_linear: break;
  }
  return 1;
}

}  // namespace

std::optional<double> expected_error(std::string_view numerics, const Step& step, const ModelConfig& config, int keys) {
  Reading reading = Reading::as_they_are;
  if (numerics == "bf16")
    reading = Reading::bf16;
  else if (numerics == "q8_k" || numerics == "q8_1")
    reading = Reading::q8;
  else if (numerics != "f64" && numerics != "f32")
    return std::nullopt;
  const double unit = rounding(numerics == "f64" ? bits_f64 : bits_f32);
  if (step.op == Op::linear || step.op == Op::expert_linear) return std::sqrt(product(step, reading, unit));
  return std::sqrt(roundings(step, config, keys) * unit);
}

}  // namespace moe_diag
