// SPDX-License-Identifier: MIT
// Types of values: what other writers write, and 16-bit types taken for each other.
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include "core/file/npy_file.hpp"
#include "core/recording/value_type.hpp"
#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

const std::string golden = std::string(MOE_DIAG_SOURCE_DIR) + "/tests/golden/recordings/";

ModelConfig golden_config() {
  ModelConfig config = small_config();
  config.hidden = 64;
  return config;
}

const std::vector<std::pair<std::string, Site>> golden_sites{
    {"embedding", {stages::embedding, -1}},
    {"layer_00/moe_router_indices", {stages::moe_router_indices, 0}},
    {"layer_00/moe_router_weights", {stages::moe_router_weights, 0}},
    {"layer_00/moe_ffn_out", {stages::moe_ffn_out, 0}},
    {"layer_02/post_ffn_residual", {stages::post_ffn_residual, 2}},
    {"final_norm", {stages::final_norm, -1}}};

void check_golden(const Recording& recording) {
  CHECK(recording.numerics() == "bf16");
  CHECK(recording.sites().size() == golden_sites.size());
  std::vector<std::byte> memory;
  for (const auto& [name, site] : golden_sites) {
    CAPTURE(name);
    const std::string text = read_text(golden + "expected/" + name + ".npy");
    const NpyArray expected = parse_npy(text);
    const Tensor rows = recording.rows(0, site, {0, 5}, memory);
    REQUIRE(rows);
    REQUIRE(rows.shape.count() == expected.count());
    int differ = 0;
    for (std::int64_t i = 0; i < expected.count(); ++i) {
      double value = 0;
      std::memcpy(&value, expected.data.data() + i * 8, sizeof value);
      differ += value != rows.value(i);
    }
    CHECK(differ == 0);
  }
  CHECK(recording.rows(0, {stages::embedding, -1}, {0, 1}, memory).dtype == DType::f16);
  CHECK(recording.rows(0, {stages::post_ffn_residual, 2}, {0, 1}, memory).dtype == DType::bf16);
  CHECK(recording.rows(0, {stages::final_norm, -1}, {0, 1}, memory).dtype == DType::f64);
}

// Values as an engine has them, from a standard normal distribution. Each makes one.
struct Kind {
  std::string name;
  std::function<double(std::mt19937&)> value;
};
double normal(std::mt19937& random) { return std::normal_distribution<double>()(random); }
double silu(double x) { return x / (1 + std::exp(-x)); }

std::vector<Kind> kinds() {
  std::vector<Kind> kinds;
  for (const double scale : {1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0})
    kinds.push_back({fmt::format("normal, rms {}", scale), [=](std::mt19937& r) { return normal(r) * scale; }});
  for (const double scale : {0.3, 1.0, 3.0, 10.0})
    kinds.push_back({fmt::format("silu(gate) up, rms {}", scale),
                     [=](std::mt19937& r) { return silu(normal(r) * scale) * normal(r) * scale; }});
  kinds.push_back({"uniform", [](std::mt19937& r) { return std::uniform_real_distribution<double>(-1, 1)(r); }});
  kinds.push_back({"positive", [](std::mt19937& r) { return std::uniform_real_distribution<double>(0, 1)(r); }});
  kinds.push_back({"heavy tails", [](std::mt19937& r) { return normal(r) / std::max(1e-3, std::fabs(normal(r))); }});
  kinds.push_back({"massive", [](std::mt19937& r) { return normal(r) * (r() % 500 == 0 ? 3000 : 1); }});
  kinds.push_back({"logits", [](std::mt19937& r) { return normal(r) * 3 - 5; }});
  return kinds;
}

std::uint16_t bits_of(Element element, double value) {
  return element == Element::f16 ? F16(value).bits : BF16(value).bits;
}

}  // namespace

TEST_CASE("dumps that numpy, ml_dtypes and safetensors wrote have their values") {
  check_golden(Recording::open(golden + "npy", golden_config()));
  check_golden(Recording::open(golden + "safetensors", golden_config()));
}

TEST_CASE("sound values are of their type, whatever the stage, and of the other type they are not") {
  std::mt19937 random(1);
  // Not told: values that span more than 16 octaves, as behind a SiLU of large gates, and f16 without a tail.
  const auto is_told = [](const Kind& kind, Element as) {
    if (kind.name == "silu(gate) up, rms 10") return false;
    return as == Element::f16 || (kind.name != "uniform" && kind.name != "positive" && kind.name != "logits");
  };
  for (const Kind& kind : kinds())
    for (const Element element : {Element::f16, Element::bf16}) {
      const Element other = element == Element::f16 ? Element::bf16 : Element::f16;
      int sound = 0, told = 0;
      for (int seed = 0; seed < 20; ++seed) {
        ValueSample sample;
        for (int i = 0; i < 512; ++i) sample.add(bits_of(element, kind.value(random)));
        sound += sample.why_not(element) ? 0 : 1;
        told += sample.why_not(other) ? 1 : 0;
      }
      CAPTURE(kind.name, name_of(element), told);
      CHECK(sound == 20);
      if (is_told(kind, other)) CHECK(told == 20);
    }
}

TEST_CASE("too few values tell no type, and values that are not finite do not count") {
  std::mt19937 random(2);
  ValueSample few, broken;
  for (int i = 0; i < 63; ++i) few.add(BF16(normal(random)).bits);
  CHECK(!few.why_not(Element::f16));
  for (int i = 0; i < 400; ++i) broken.add(i % 2 ? BF16(normal(random)).bits : BF16(std::nan("")).bits);
  CHECK(!broken.why_not(Element::bf16));
  CHECK(!ValueSample().why_not(Element::bf16));
}

TEST_CASE("bf16 taken for f16 is refused, and the other way round, with the remedy") {
  MadeDump dump(golden_config());
  for (const std::string name : {"dump.json", "calls.jsonl"}) dump.put(name, read_text(golden + "npy/" + name));
  const auto relabelled = [](const std::string& name, std::string_view type) {
    std::string text = read_text(golden + "npy/" + name + ".npy");
    for (const std::string_view was : {"<V2", "<f2"})
      if (const std::size_t at = text.find(was); at != std::string::npos) text.replace(at, 3, type);
    return text;
  };
  dump.put("layer_02/post_ffn_residual.npy", relabelled("layer_02/post_ffn_residual", "<f2"));
  CHECK_THAT(dump.refusal(),
             Catch::Matchers::Contains("layer_02/post_ffn_residual.npy: read as f16, 98 of 100 values "
                                       "span 1.3 octaves, rms 1.9; read as bf16 they span 10.5, rms 2, as "));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("bf16 taken for f16?"));
  dump.put("layer_02/post_ffn_residual.npy", relabelled("layer_02/post_ffn_residual", "|V2"));
  CHECK(dump.refusal().empty());
  dump.put("layer_02/post_ffn_residual.npy", relabelled("layer_02/post_ffn_residual", "<u2"));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("has whole numbers of type u16"));
  dump.head(R"(, "closed": true, "bf16_as": "u2")");
  CHECK(dump.refusal().empty());
  dump.put("embedding.npy", relabelled("embedding", "<V2"));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("f16 taken for bf16?"));
  dump.remove("embedding.npy");
  dump.put("layer_00/moe_router_weights.npy", relabelled("layer_00/moe_router_weights", "<f2"));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("moe_router_weights.npy: its rows sum to"));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("expected 1: bf16 taken for f16?"));
}

TEST_CASE("values that are declared with another number of bits are told from shards") {
  MadeDump dump(golden_config());
  dump.head();
  dump.calls({R"({"rows": 2})"});
  std::mt19937 random(3);
  std::vector<std::uint16_t> half(128);
  for (std::uint16_t& bits : half) bits = BF16(normal(random)).bits;
  dump.put("final_norm.npy", npy_bytes("<f4", {2, 32}, bytes_of(half)));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("half of a row: 16-bit values that are declared as f32?"));
  std::vector<float> shard(64), whole(256);
  for (float& value : shard) value = static_cast<float>(normal(random));
  dump.put("final_norm.npy", npy_bytes("<f4", {2, 32}, bytes_of(shard)));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("the shard of one of 2 tensor-parallel ranks"));
  for (float& value : whole) value = static_cast<float>(normal(random));
  dump.put("final_norm.npy", npy_bytes("<V2", {2, 128}, bytes_of(whole).substr(0, 512)));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("twice a row: f32 values that are declared with 16 bits?"));
}

}  // namespace moe_diag
