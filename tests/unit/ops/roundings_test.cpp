// SPDX-License-Identifier: MIT
// What engines round values to, bit by bit as ml_dtypes, numpy and the gguf package have it.
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include "core/file/npy_file.hpp"
#include "core/ops/numerics.hpp"
#include "core/ops/rotation.hpp"
#include "core/ops/rounding.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag::test {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  REQUIRE(file);
  return {std::istreambuf_iterator<char>(file), {}};
}

// An array of doubles or floats.
struct Golden {
  explicit Golden(const std::string& name)
      : bytes(read_file(MOE_DIAG_SOURCE_DIR "/tests/golden/roundings/" + name + ".npy")) {
    const NpyArray array = parse_npy(bytes);
    row = array.shape[1];
    const bool wide = array.type == "<f8";
    const Tensor tensor{array.data.data(), wide ? DType::f64 : DType::f32, {array.shape[0], row}};
    values = host::values_of(tensor);
  }
  std::string bytes;
  std::int64_t row = 0;
  host::Values values;
};

}  // namespace

TEST_CASE("activations and caches are rounded as the reference rounds them, bit by bit") {
  using host::Rounding;
  const Golden x("x");
  struct Case {
    const char* name;
    Rounding rounding;
    float scale = 0;
  };
  for (const auto& [name, rounding, scale] : {Case{"q4_0", Rounding::q4_0},
                                              {"fp8", Rounding::fp8},
                                              {"fp8_token", Rounding::fp8_token},
                                              {"fp8_128", Rounding::fp8_128},
                                              {"fp8_128_pow2", Rounding::fp8_128_pow2},
                                              {"fp8_static", Rounding::fp8_static, 0.02F},
                                              {"mxfp8", Rounding::mxfp8},
                                              {"mxfp4", Rounding::mxfp4},
                                              {"nvfp4", Rounding::nvfp4},
                                              {"nvfp4_given", Rounding::nvfp4, 0.01F}}) {
    const Golden expected(name);
    const host::Values rounded = host::rounded(x.values, rounding, x.row, scale);
    REQUIRE(expected.values.size() == rounded.size());
    int wrong = 0;
    for (std::size_t i = 0; wrong < 3 && i < rounded.size(); ++i) {
      if (rounded[i] == expected.values[i]) continue;
      INFO(name << ", value " << i << ": " << x.values[i] << " gives " << rounded[i] << ", not " << expected.values[i]);
      CHECK(++wrong == 0);
    }
  }
}

TEST_CASE("keys and values are rotated before they are rounded, as the reference has it, bit by bit") {
  const Golden x("x");
  for (const std::int64_t block : {64, 128}) {
    const Golden expected("hadamard_" + std::to_string(block) + "_q4_0");
    CHECK(host::rounded_when_rotated(x.values, host::Rounding::q4_0, block) == expected.values);
    const host::Values back = host::rotated(host::rotated(x.values, block), block);
    for (std::size_t i = 0; i < back.size(); ++i) REQUIRE(back[i] == Approx(x.values[i]).margin(1e-9));
  }
  const CacheRotation& hadamard = *find_cache_rotation("hadamard");
  for (const auto& [head_dim, keys] : {std::pair{64, 64}, {128, 128}, {192, 64}, {256, 256}}) {
    Step scores, mix;
    scores.op = Op::scores;
    scores.params = ScoresParams{{4, 2, head_dim}, 1};
    mix.op = Op::mix;
    mix.params = MixParams{{4, 2, head_dim}};
    CHECK(hadamard.block(scores) == keys);
    CHECK(hadamard.block(mix) == 64);
  }
}

namespace {

// The values of a matrix in f32, rounded in strips of rows as they lie in memory.
host::Values rounded_matrix(std::vector<float> values, std::int64_t cols, host::WeightRounding rounding) {
  const auto rows = static_cast<std::int64_t>(values.size()) / cols;
  const Weight weight{"w", BlockType::f32, cols, rows, 1, reinterpret_cast<const std::byte*>(values.data())};
  Weight to = weight;
  to.type = host::type_of(rounding);
  std::vector<std::byte> bytes(to.bytes());
  to.data = bytes.data();
  for (std::int64_t first = 0; first < rows; first += host::weight_block)
    host::round_rows(host::Matrix(weight), first, rounding, bytes.data() + (to.row(0, first) - to.data));
  host::Values all;
  for (std::int64_t r = 0; r < rows; ++r) {
    const host::Values row = host::decode_row(host::Matrix(to), r);
    all.insert(all.end(), row.begin(), row.end());
  }
  return all;
}

}  // namespace

TEST_CASE("weights are rounded as the reference rounds them, bit by bit, edges of blocks included") {
  const Golden w("weights");
  const std::vector<float> values(w.values.begin(), w.values.end());
  for (const WeightType& type : all_weight_types()) {
    if (!type.rounding) continue;
    const Golden expected("weights_" + std::string(type.name));
    const host::Values rounded = rounded_matrix(values, w.row, *type.rounding);
    REQUIRE(expected.values.size() == rounded.size());
    int wrong = 0;
    for (std::size_t i = 0; wrong < 3 && i < rounded.size(); ++i) {
      if (rounded[i] == expected.values[i]) continue;
      INFO(type.name << ", value " << i << ": " << w.values[i] << " gives " << rounded[i] << ", not "
                     << expected.values[i]);
      CHECK(++wrong == 0);
    }
  }
}

TEST_CASE("a weight that is not finite makes its whole block of FP8 NaN, and no other") {
  std::vector<float> values(130 * 140, 0.5F);
  values[3 * 140 + 130] = INFINITY;
  for (const auto rounding : {host::WeightRounding::fp8_block, host::WeightRounding::fp8_block_pow2}) {
    const host::Values rounded = rounded_matrix(values, 140, rounding);
    for (std::size_t r = 0; r < 130; ++r)
      for (std::size_t c = 0; c < 140; ++c) REQUIRE(std::isnan(rounded[r * 140 + c]) == (r < 128 && c >= 128));
  }
}

TEST_CASE("llama.cpp's pairs: what an activation becomes depends on the weight") {
  const Reads& reads = *find_reads("q8_k");
  CHECK(reads.of(BlockType::q4_k) == host::Rounding::q8_k);
  CHECK(reads.of(BlockType::iq4_xs) == host::Rounding::q8_k);
  CHECK(reads.of(BlockType::q5_0) == host::Rounding::q8_0);
  CHECK(reads.of(BlockType::mxfp4) == host::Rounding::q8_0);
  CHECK(reads.of(BlockType::bf16) == host::Rounding::bf16);
  CHECK_FALSE(reads.of(BlockType::f32));
}

TEST_CASE("presets differ in what an engine does not store, and words by stage replace them") {
  Description backend;
  backend.values = DType::f32;
  const Stages all = qwen3moe.stages;
  const auto type_of = [&](const EngineNumerics& engine, Stage stage) {
    return storage_of(engine, all, backend)[stage.index()];
  };
  EngineNumerics hf, vllm, llama, one;
  hf.stored = "hf";
  vllm.stored = "vllm";
  llama.stored = "llama_cpp";
  CHECK(type_of(hf, stages::moe_router_probs) == DType::f32);
  CHECK(type_of(hf, stages::moe_router_weights) == DType::bf16);
  CHECK(type_of(hf, stages::attn_scores) == DType::bf16);
  CHECK(type_of(vllm, stages::attn_scores) == DType::f32);
  CHECK(type_of(vllm, stages::moe_expert_out) == DType::f32);
  CHECK(type_of(vllm, stages::moe_expert_gate) == DType::bf16);
  CHECK(type_of(vllm, stages::moe_expert_weighted) == DType::bf16);
  CHECK(type_of(llama, stages::lm_head) == DType::f32);
  one.stages = {{stages::moe_expert_out, DType::f16}};
  CHECK(type_of(one, stages::moe_expert_out) == DType::f16);
  CHECK(type_of(one, stages::moe_expert_up) == DType::f32);
}

}  // namespace moe_diag::test
