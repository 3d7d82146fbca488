// SPDX-License-Identifier: MIT
#include "core/ops/predicted.hpp"

#include <algorithm>
#include <cmath>
#include <optional>
#include <string_view>
#include <utility>

#include "core/ops/operator.hpp"

namespace moe_diag {
namespace {

// Square of the error of rounding to `bits` bits of significand: uniform within half a unit in the last place, for
// values whose logarithms are spread evenly: a mean square of 3 / (8 ln 2) / 12 units.
double rounding(int bits) { return square(0.2124 * std::ldexp(1.0, 1 - bits)); }

constexpr int bits_f64 = 53, bits_f32 = 24, bits_f16 = 11, bits_bf16 = 8, bits_e4m3 = 4, bits_e2m1 = 2;

// Blocks of n activations in steps of 1/127 of the largest, which of n bell-shaped values is sqrt(2 ln n) of their rms.
double quantising(int n) { return 2 * std::log(n) / (12 * square(127)); }

// The square of the error of a rounding of values that look drawn from a bell curve.
double error_of(host::Rounding way) {
  using host::Rounding;
  constexpr double steps_q4_0 = 8;
  switch (way) {
    case Rounding::bf16: return rounding(bits_bf16);
    case Rounding::f16: return rounding(bits_f16);
    case Rounding::q8_0:
    case Rounding::q8_0_scalar: return quantising(32) + rounding(bits_f16);
    case Rounding::q8_1: return quantising(32);
    case Rounding::q8_k: return quantising(256);
    case Rounding::q4_0: return quantising(32) * square(127 / steps_q4_0) + rounding(bits_f16);
    case Rounding::fp8:
    case Rounding::fp8_token:
    case Rounding::fp8_128:
    case Rounding::fp8_128_pow2:
    case Rounding::fp8_static:
    case Rounding::mxfp8: return rounding(bits_e4m3);
    case Rounding::nvfp4:
    case Rounding::mxfp4: return rounding(bits_e2m1);
  }
  return 0;
}
double error_of(std::optional<host::Rounding> way) { return way ? error_of(*way) : 0; }

}  // namespace

double rounding_of(DType type) {
  const int bits = type == DType::f16    ? bits_f16
                   : type == DType::bf16 ? bits_bf16
                   : type == DType::f32  ? bits_f32
                                         : bits_f64;
  return std::sqrt(rounding(bits));
}

namespace {

double error_of(DType type) {
  return type == DType::f16 ? rounding(bits_f16) : type == DType::bf16 ? rounding(bits_bf16) : 0;
}

// Where the oracle reads as the lane does, one value may still be on another side of a border: a step of 12 times the
// mean square of an error within half of one. It counts as four expected errors.
double activation_error(const PredictedNumerics& numerics, const Step& step, const Weight& weight) {
  constexpr double one_step = 12.0 / (4 * 4);
  const auto way = [&](const Reads* reads) { return reads ? reads->rounding(step, weight.type) : std::nullopt; };
  const auto lane = way(numerics.lane.reads), oracle = way(numerics.oracle.reads);
  if (lane == oracle) return one_step * error_of(lane) / static_cast<double>(weight.cols);
  return error_of(lane) + error_of(oracle);
}

double error_of(host::WeightRounding way) {
  return way == host::WeightRounding::bf16 ? rounding(bits_bf16) : rounding(bits_e4m3);
}

// Where the oracle rounds weights as the lane does, both have the same. Else they are decoded, which is exact but for
// the difference or the sum of a type with a minimum.
double weight_error(const PredictedNumerics& numerics, const Step& step, BlockType type) {
  const auto of = [&](const WeightType* weights) {
    const auto way = weights ? weights->of(step) : std::nullopt;
    return way == host::WeightRounding::bf16 && type == BlockType::bf16 ? std::nullopt : way;
  };
  const auto lane = of(numerics.lane.weights), oracle = of(numerics.oracle.weights);
  if (lane || oracle) return lane == oracle ? 0 : (lane ? error_of(*lane) : 0) + (oracle ? error_of(*oracle) : 0);
  const bool is_integer = numerics.lane.reads && numerics.lane.reads->rounding(step, type);
  return info(type).scales.count == 2 && !is_integer ? numerics.unit : 0;
}

// One sum of n terms of random sign is rounded at j/n of its square. Truncating errs by twice as much, and makes every
// sum smaller besides: m times in a row, that adds up to m roundings.
double error_in_order(const Accumulator& sums, double terms) {
  const double times = terms / sums.together;
  return rounding(sums.bits) * (sums.truncates ? 4 * terms / 2 + times * times : terms / 2);
}

double error_of_sum(const PredictedNumerics& numerics, std::int64_t terms) {
  const Accumulator* sums = numerics.lane.accumulator;
  if (!sums) return walk(terms) * numerics.unit;
  if (sums->kind == Accumulator::Kind::partial_sums) return walk(terms) * rounding(sums->bits);
  const auto n = static_cast<double>(terms);
  if (sums->promoted_after == 0) return error_in_order(*sums, n);
  const auto part = static_cast<double>(std::min(sums->promoted_after, terms));
  return error_in_order(*sums, part) + n / part / 2 * rounding(bits_f32);
}

// As the lane says itself, or as its numerics have it.
OperandNumerics operands_of(const LaneNumerics& lane) {
  const NamedNumerics* own = find_named_numerics(lane.name);
  const std::string_view reads = lane.reads.empty() && own ? own->reads : lane.reads;
  const std::string_view weights = lane.weights.empty() && own ? own->weights : lane.weights;
  const std::string_view accumulator = lane.accumulator.empty() && own ? own->accumulator : lane.accumulator;
  return {find_reads(reads), find_weight_type(weights), find_accumulator(accumulator)};
}

// The square of what rounding the inputs to 16 bits moves the output by, as if each did so by itself.
double input_error(const LaneNumerics& lane, const Step& step, const LaneNumerics& oracle) {
  double sum = 0;
  for (std::size_t i = 0; i < step.in.size(); ++i)
    if (lane.rounds_input(step, i, oracle)) sum += error_of(lane.stored(step.in[i]));
  return sum;
}

double cache_error(const LaneNumerics& lane, const Step& step, const LaneNumerics& oracle) {
  const CacheRounding own(lane.kv_cache, lane.kv_rotate), other(oracle.kv_cache, oracle.kv_rotate);
  const bool are_alike = own.rounding == other.rounding && own.rotation == other.rotation;
  if (step.caches.size() == 0 || are_alike) return 0;
  return error_of(own.rounding) + error_of(other.rounding);
}

}  // namespace

double squared_error_of_product(const Step& step, const ModelConfig&, const PredictedNumerics& numerics, int) {
  const double unit = numerics.unit;
  double sum = 0, rows = 0;
  for (const Weight* w : step.weights) {
    const double operands = (step.biases.size() > 0 ? 2 : 1) * unit + activation_error(numerics, step, *w) +
                            weight_error(numerics, step, w->type);
    sum += static_cast<double>(w->rows) * (operands + error_of_sum(numerics, w->cols));
    rows += static_cast<double>(w->rows);
  }
  return sum / rows;
}

LaneNumerics::LaneNumerics(std::string named) : name(std::move(named)) {
  if (const NamedNumerics* own = find_named_numerics(name)) values = own->values;
}

bool LaneNumerics::rounds_input(const Step& step, std::size_t input, const LaneNumerics& oracle) const {
  const Stage stage = step.in[input];
  const DType type = stored(stage);
  return payload_of(stage) == Payload::values && type != DType::f64 && type != oracle.stored(stage);
}

double expected_of_values(double expected, DType stored, double rms) {
  constexpr double step = 0x1p-24;
  return stored == DType::f16 && rms > 0 ? std::hypot(expected, step / std::sqrt(12) / rms) : expected;
}

bool rounds_activations(std::string_view numerics) {
  const NamedNumerics* own = find_named_numerics(numerics);
  return own && own->reads != "exact";
}

bool needs_inputs(const LaneNumerics& lane, const Step& step, const LaneNumerics& oracle) {
  if (!operator_of(step).depends_on_values) return false;
  for (std::size_t i = 0; i < step.in.size(); ++i)
    if (lane.rounds_input(step, i, oracle) && (has_16_bits(lane.stored(step.in[i])) || step.op == Op::softmax))
      return true;
  return false;
}

std::optional<double> expected_error(const LaneNumerics& lane, const Step& step, const ModelConfig& config, int keys,
                                     const LaneNumerics& oracle, std::optional<double> from_inputs) {
  const NamedNumerics* own = find_named_numerics(lane.name);
  if (!own) return std::nullopt;
  const double unit = rounding(own->values == DType::f64 ? bits_f64 : bits_f32);
  double square = operator_of(step).squared_error(step, config, {operands_of(lane), operands_of(oracle), unit}, keys);
  const bool coarse = std::any_of(step.in.begin(), step.in.end(), [&](Stage s) { return has_16_bits(lane.stored(s)); });
  if (from_inputs && !coarse)
    square = std::max(square, *from_inputs);  // which holds what f32 does to inputs of the size that is assumed
  else
    square += from_inputs.value_or(input_error(lane, step, oracle));
  square += cache_error(lane, step, oracle);
  if (step.out.size() > 0) square += error_of(lane.stored(step.out[step.out.size() - 1]));
  return std::sqrt(square);
}

double expected_of_all(std::span<const Step> steps, double expected, const LaneNumerics& lane,
                       const ModelConfig& config, int keys, const LaneNumerics& oracle) {
  double sum = square(expected);
  for (std::size_t i = 0; i + 1 < steps.size(); ++i)
    sum += square(expected_error(lane, steps[i], config, keys, oracle).value_or(0));
  return std::sqrt(sum);
}

}  // namespace moe_diag
