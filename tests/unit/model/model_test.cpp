// SPDX-License-Identifier: MIT
#include "core/model/model.hpp"

#include <cstring>
#include <string>

#include "tests/support/catch.hpp"

namespace moe_diag {
namespace {

const std::string golden = MOE_DIAG_SOURCE_DIR "/tests/golden/hf/";

TEST_CASE("a tiny synthetic model opens with what it is made of") {
  const Model model = Model::synthetic({"tiny", 0, "q4_k_m", 7});
  const ModelConfig& c = model.config();
  CHECK(c.layers == 4);
  CHECK(c.hidden == 256);
  CHECK(c.q_width() == 512);
  CHECK(c.kv_heads == 2);
  CHECK(c.experts == 12);
  CHECK(c.used == 3);
  CHECK(c.vocab == 512);
  CHECK_FALSE(c.tied_output);
  CHECK(model.config().layers == 4);
  CHECK(model.view().weights.size() == 3 + 4 * 12);
  CHECK(model.weight("ffn_down_exps", 2).name == "blk.2.ffn_down_exps.weight");
  CHECK(model.weight("ffn_down_exps", 1).type == BlockType::q4_k);
  CHECK(model.weight("ffn_down_exps", 2).type == BlockType::q6_k);
  CHECK(model.weight("output").type == BlockType::q6_k);
  CHECK(model.source() == "synthetic: tiny, 4 layers, q4_k_m, seed 7");
}

TEST_CASE("models of every shape open, tied and separate output, another alignment") {
  const Model tied = Model::open(golden + "tied_bf16.gguf");
  CHECK(tied.config().tied_output);
  CHECK(&tied.weight("output") == &tied.weight("token_embd"));
  CHECK(tied.config().heads == 4);
  CHECK(tied.config().head_dim == 16);
  const Model mixed = Model::open(golden + "mixed_types.gguf");
  CHECK_FALSE(mixed.config().tied_output);
  CHECK(mixed.config().layers == 4);
  CHECK(Model::open(golden + "one_expert.gguf").config().experts == 1);
  CHECK(Model::open(golden + "equal_heads.gguf").config().kv_heads == 4);
  CHECK(tied.digest().size() == 16);
  CHECK(tied.digest() != mixed.digest());
}

}  // namespace
}  // namespace moe_diag
