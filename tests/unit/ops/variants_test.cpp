// SPDX-License-Identifier: MIT
// Named variants, as ggml, transformers and the gguf package compute them. tests/golden/variants has the generator.
#include <cmath>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "core/file/npy_file.hpp"
#include "core/ops/rope.hpp"
#include "core/ops/rounding.hpp"
#include "core/ops/topk.hpp"
#include "core/ops/values.hpp"
#include "core/ops/variant.hpp"
#include "tests/support/catch.hpp"

namespace moe_diag::test {
namespace {

host::Values golden(const std::string& name) {
  std::ifstream file(MOE_DIAG_SOURCE_DIR "/tests/golden/" + name + ".npy", std::ios::binary);
  REQUIRE(file);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  const NpyArray array = parse_npy(bytes);
  host::Values values;
  for (std::int64_t i = 0; i < array.count(); ++i) {
    const char* const at = array.data.data() + i * (array.type == "<f8" ? 8 : 4);
    if (array.type == "<f8") {
      values.push_back(0);
      std::memcpy(&values.back(), at, sizeof(double));
    } else if (array.type == "<i4") {
      std::int32_t value = 0;
      std::memcpy(&value, at, sizeof value);
      values.push_back(value);
    } else {
      float value = 0;
      std::memcpy(&value, at, sizeof value);
      values.push_back(static_cast<double>(value));
    }
  }
  return values;
}

constexpr std::int64_t head = 128;
constexpr double theta = 1e6;

// The largest difference from a golden table, in units in the last place of a cosine of 1 with so many bits. `loose`:
// beyond what a unit in the last place of the power and of its inverse, which libraries may miss, turns a pair.
double worst(RopeAngles angles, const std::string& name, int bits, bool loose = false) {
  const host::Values positions = golden("variants/positions"), table = golden("variants/" + name);
  double most = 0;
  for (std::size_t r = 0; r < positions.size(); ++r) {
    const std::vector<host::Turn> turns = host::turns(head, positions[r], theta, angles);
    REQUIRE(turns.size() == head / 2);
    for (std::size_t i = 0; i < turns.size(); ++i) {
      const double* const row = table.data() + r * head;
      const double reach =
          loose ? std::ldexp(positions[r] * std::pow(theta, -2.0 * static_cast<double>(i) / head), -22) : 0;
      most = std::max(
          {most, std::fabs(turns[i].cosine - row[i]) - reach, std::fabs(turns[i].sine - row[i + head / 2]) - reach});
    }
  }
  return std::ldexp(most, bits);
}

}  // namespace

TEST_CASE("angles of rotations are those of the implementations that variants are named after") {
  CHECK(worst(RopeAngles::multiplied, "rope_multiplied", 24) <= 2);
  CHECK(worst(RopeAngles::f32, "rope_f32", 24, true) <= 1);
  CHECK(worst(RopeAngles::f32_bf16, "rope_f32_bf16", 8, true) <= 1);
}

TEST_CASE("at late positions, another variant is not within reach of a golden table") {
  for (const RopeAngles other : {RopeAngles::exact, RopeAngles::f32, RopeAngles::f32_bf16})
    CHECK(worst(other, "rope_multiplied", 24) > 1000);
  CHECK(worst(RopeAngles::f32, "rope_f32_bf16", 8, true) > 0.1);
}

TEST_CASE("Q8_0 by scalar code is ggml's, bit by bit, and differs from that of x86") {
  const host::Values x = golden("roundings/x"), expected = golden("variants/q8_0_scalar");
  CHECK(host::rounded(x, host::Rounding::q8_0_scalar) == expected);
  host::Values ties(32, 0.0);
  ties[0] = 127;
  ties[1] = 0.5;
  ties[2] = -2.5;
  CHECK(host::rounded(ties, host::Rounding::q8_0)[2] == -2);
  host::Values away = ties;
  away[1] = 1;
  away[2] = -3;
  CHECK(host::rounded(ties, host::Rounding::q8_0_scalar) == away);
}

TEST_CASE("weights of experts are divided by what their variant names") {
  using host::Weighing;
  const host::Values small{3e-5, 1e-5}, zero{0, 0}, large{0.3, 0.1};
  CHECK(host::weighed(large, Weighing::shares, Denominator::clamped) == host::weighed(large, Weighing::shares));
  CHECK(host::weighed(small, Weighing::shares, Denominator::clamped) ==
        host::Values{3e-5 / 6.103515625e-5, 1e-5 / 6.103515625e-5});
  CHECK(host::weighed(zero, Weighing::shares, Denominator::sum_plus_1e20) == zero);
  CHECK(std::isnan(host::weighed(zero, Weighing::shares)[0]));
}

TEST_CASE("every variant applies to a step of its kind, which is then one that no backend computes") {
  for (const Variant& row : all_variants()) {
    INFO(row.key << " " << row.name);
    int applied = 0;
    for (Params params : {Params(RopeParams{.head_dim = 8, .theta = 1e4}), Params(TopkParams{.renormalised = true}),
                          Params(TopkParams{}), Params(SoftmaxParams{})}) {
      Step step;
      step.params = params;
      CHECK_FALSE(is_variant(step));
      const bool takes = row.apply(step.params);
      CHECK(is_variant(step) == takes);
      applied += takes ? 1 : 0;
    }
    CHECK(applied == 1);
    CHECK(find_variant(row.key, row.name) == &row);
  }
  CHECK(variant_keys() == std::vector<std::string>{"rope_angles", "renormalisation"});
}

}  // namespace moe_diag::test
