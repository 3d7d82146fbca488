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
void round_q8_0_scalar(std::span<const double> x, double* out) {
  const float step = std::fabs(largest_of(x)) / 127.0F, quotient = 1.0F / step;
  const float inverse = std::isfinite(quotient) ? quotient : 0.0F;  // step is 0, or next to it
  const double kept = nearest_f16(step);
  for (double v : x) *out++ = kept * double{std::round(static_cast<float>(v) * inverse)};
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

// FP8 E4M3 without infinities: 4 bits of significand, the smallest normal number 2^-6.
double nearest_e4m3(double x) { return std::copysign(std::min(std::fabs(with_bits(x, 4, -6)), 448.0), x); }
// FP4 E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6.
double nearest_e2m1(double x) { return std::copysign(std::min(std::fabs(with_bits(x, 2, 0)), 6.0), x); }

void round_q4_0(std::span<const double> x, double* out) {
  const float step = largest_of(x) / -8.0F, inverse = step != 0 ? 1.0F / step : 0.0F;
  const double kept = nearest_f16(step);
  for (double v : x) {
    const float scaled = static_cast<float>(v) * inverse;
    *out++ = kept * (std::min(15.0, std::trunc(double{scaled + 8.5F})) - 8);
  }
}

void round_fp8(std::span<const double> x, bool power_of_two, double* out) {
  constexpr float least = 1e-10F;  // of a largest value
  float scale = std::max(std::fabs(largest_of(x)), least) / 448.0F;
  if (power_of_two) scale = std::exp2(std::ceil(std::log2(scale)));
  for (double v : x) *out++ = nearest_e4m3(static_cast<float>(v) / scale) * double{scale};
}

// `top`: exponent of the largest number of the element type.
void round_mx(std::span<const double> x, int top, double (*nearest)(double), double* out) {
  const float largest = std::fabs(largest_of(x));
  const double scale = largest > 0 ? std::ldexp(1.0, std::max(std::ilogb(largest) - top, -127)) : 1;
  for (double v : x) *out++ = nearest(v / scale) * scale;
}

void round_fp8_static(std::span<const double> x, float scale, double* out) {
  const float inverse = 1.0F / scale;
  for (double v : x) *out++ = nearest_e4m3(static_cast<float>(v) * inverse) * double{scale};
}

float reciprocal(float x) { return x == 0 ? 0.0F : 1.0F / x; }

// A row, or all values where a scale is given.
void round_nvfp4(std::span<const double> x, float scale, double* out) {
  constexpr std::size_t group = 16;
  constexpr float largest_e4m3 = 448, largest_e2m1 = 6;
  const float global =  // what values are multiplied by
      scale > 0 ? 1.0F / scale : largest_e4m3 * largest_e2m1 * reciprocal(std::fabs(largest_of(x)));
  for (std::size_t k = 0; k < x.size(); k += group) {
    const auto some = x.subspan(k, group);
    const float wanted = global * (std::fabs(largest_of(some)) * (1.0F / largest_e2m1));
    const auto own = static_cast<float>(nearest_e4m3(wanted));
    const float times = reciprocal(own * reciprocal(global));
    const double kept = own * double{reciprocal(global)};
    for (double v : some) *out++ = nearest_e2m1(static_cast<float>(v) * times) * kept;
  }
}

// The values that are rounded together.
std::int64_t together(Rounding rounding, std::int64_t row) {
  return rounding == Rounding::fp8_token || rounding == Rounding::nvfp4 ? row : block_of(rounding);
}

}  // namespace

std::string_view name_of(Rounding rounding) {
  constexpr std::string_view names[] = {"BF16",
                                        "F16",
                                        "Q8_0",
                                        "Q8_0 by scalar code",
                                        "Q8_1",
                                        "Q8_K",
                                        "Q4_0",
                                        "FP8",
                                        "FP8 by row",
                                        "FP8 by 128",
                                        "FP8 by 128 with powers of two",
                                        "FP8 with a given scale",
                                        "MXFP8",
                                        "MXFP4",
                                        "NVFP4"};
  return names[static_cast<std::size_t>(rounding)];
}

std::int64_t block_of(Rounding rounding) {
  switch (rounding) {
    case Rounding::q8_k: return 256;
    case Rounding::fp8_128:
    case Rounding::fp8_128_pow2: return 128;
    case Rounding::nvfp4: return 16;
    case Rounding::q8_0:
    case Rounding::q8_0_scalar:
    case Rounding::q8_1:
    case Rounding::q4_0:
    case Rounding::mxfp8:
    case Rounding::mxfp4: return 32;
    default: return 1;
  }
}

Values rounded(std::span<const double> x, Rounding rounding, std::int64_t row, float scale) {
  const std::int64_t block = together(rounding, row > 0 ? row : size_of(x));
  expect_multiple("rounded", fmt::format("values of a row as {}", name_of(rounding)), block_of(rounding), block);
  if (rounding == Rounding::fp8_static && !(scale > 0)) refuse("rounded", "scale", 1, 0);
  expect_multiple("rounded", fmt::format("values as {}", name_of(rounding)), block, size_of(x));
  Values out(x.size());
  for (std::size_t k = 0; k < x.size(); k += at(block)) {
    const auto some = x.subspan(k, at(block));
    switch (rounding) {
      case Rounding::bf16: out[k] = with_bits(x[k], 8, -126); break;
      case Rounding::f16: out[k] = nearest_f16(x[k]); break;
      case Rounding::q8_0: round_q8_0(some, &out[k]); break;
      case Rounding::q8_0_scalar: round_q8_0_scalar(some, &out[k]); break;
      case Rounding::q8_1: round_q8_1(some, &out[k]); break;
      case Rounding::q8_k: round_q8_k(some, &out[k]); break;
      case Rounding::q4_0: round_q4_0(some, &out[k]); break;
      case Rounding::fp8: out[k] = nearest_e4m3(x[k]); break;
      case Rounding::fp8_token:
      case Rounding::fp8_128: round_fp8(some, false, &out[k]); break;
      case Rounding::fp8_128_pow2: round_fp8(some, true, &out[k]); break;
      case Rounding::fp8_static: round_fp8_static(some, scale, &out[k]); break;
      case Rounding::mxfp8: round_mx(some, 8, nearest_e4m3, &out[k]); break;
      case Rounding::mxfp4: round_mx(some, 2, nearest_e2m1, &out[k]); break;
      case Rounding::nvfp4: round_nvfp4(some, scale, &out[k]); break;
    }
  }
  return out;
}

}  // namespace moe_diag::host
