// SPDX-License-Identifier: MIT
#include "core/ops/rounding.hpp"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "core/ops/sizes.hpp"

namespace moe_diag::host {
namespace {

// x with `bits` bits of significand, ties to even, as a type does whose smallest normal number is 2^lowest.
double with_bits(double x, int bits, int lowest) {
  if (x == 0 || !std::isfinite(x)) return x;
  const int exponent = std::max(std::ilogb(x), lowest);
  return std::ldexp(std::nearbyint(std::ldexp(x, bits - 1 - exponent)), exponent - (bits - 1));
}
double nearest_f16(double x) {
  const double rounded = with_bits(x, 11, -14);
  return std::fabs(rounded) > 65504 ? std::copysign(INFINITY, x) : rounded;
}

float largest_of(std::span<const double> block) {
  double largest = 0;
  for (double v : block)
    if (std::fabs(v) > std::fabs(largest)) largest = v;
  return static_cast<float>(largest);
}

void round_q8_0(std::span<const double> x, double* out) {
  const float largest = std::fabs(largest_of(x)), quotient = 127.0F / largest;
  const float inverse = std::isfinite(quotient) ? quotient : 0.0F;  // largest is 0, or next to it
  const double kept = nearest_f16(largest / 127.0F);
  for (double v : x) *out++ = kept * double{std::nearbyint(static_cast<float>(v) * inverse)};
}
void round_q8_1(std::span<const double> x, double* out) {
  const float step = std::fabs(largest_of(x)) / 127.0F;
  for (double v : x) *out++ = step > 0 ? step * double{std::nearbyint(static_cast<float>(v) / step)} : 0;
}
void round_q8_k(std::span<const double> x, double* out) {
  const float largest = largest_of(x);
  const float inverse = -127.0F / largest, step = 1.0F / inverse;
  if (!std::isfinite(inverse)) return void(std::fill_n(out, x.size(), 0.0));  // largest is 0, or next to it
  for (double v : x) {  // the product of two floats is exact in double: as a fused multiply-add has it
    const double exact = double{static_cast<float>(v)} * double{inverse};
    *out++ = double{step} * std::min(127.0, std::nearbyint(exact));
  }
}

}  // namespace

std::string_view name_of(Rounding rounding) {
  constexpr std::string_view names[] = {"BF16", "F16", "Q8_0", "Q8_1", "Q8_K"};
  return names[static_cast<std::size_t>(rounding)];
}

std::int64_t block_of(Rounding rounding) {
  if (rounding == Rounding::q8_k) return 256;
  return rounding == Rounding::q8_0 || rounding == Rounding::q8_1 ? 32 : 1;
}

Values rounded(std::span<const double> x, Rounding rounding) {
  const std::int64_t block = block_of(rounding);
  expect_multiple("rounded", fmt::format("values as {}", name_of(rounding)), block, size_of(x));
  Values out(x.size());
  for (std::size_t k = 0; k < x.size(); k += at(block)) {
    const auto some = x.subspan(k, at(block));
    switch (rounding) {
      case Rounding::bf16: out[k] = with_bits(x[k], 8, -126); break;
      case Rounding::f16: out[k] = nearest_f16(x[k]); break;
      case Rounding::q8_0: round_q8_0(some, &out[k]); break;
      case Rounding::q8_1: round_q8_1(some, &out[k]); break;
      case Rounding::q8_k: round_q8_k(some, &out[k]); break;
    }
  }
  return out;
}

}  // namespace moe_diag::host
