// SPDX-License-Identifier: MIT
#include <functional>
#include <map>
#include <random>
#include <string>
#include <variant>
#include <vector>

#include "core/api/error.hpp"
#include "core/arch/architecture.hpp"
#include "core/gguf/gguf_header.hpp"
#include "core/model/model.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"
#include "tests/unit/model/scratch.hpp"

namespace moe_diag {
namespace {

using Value = std::variant<std::uint32_t, float, bool, std::string>;

// A right model of one layer, to be made wrong in one place.
struct Draft {
  std::map<std::string, Value> keys{{"general.architecture", "qwen3moe"},
                                    {"qwen3moe.block_count", 1u},
                                    {"qwen3moe.context_length", 64u},
                                    {"qwen3moe.embedding_length", 8u},
                                    {"qwen3moe.attention.head_count", 2u},
                                    {"qwen3moe.attention.head_count_kv", 1u},
                                    {"qwen3moe.attention.key_length", 4u},
                                    {"qwen3moe.attention.value_length", 4u},
                                    {"qwen3moe.attention.layer_norm_rms_epsilon", 1e-6f},
                                    {"qwen3moe.rope.freq_base", 1e6f},
                                    {"qwen3moe.expert_count", 3u},
                                    {"qwen3moe.expert_used_count", 2u},
                                    {"qwen3moe.expert_feed_forward_length", 4u}};
  struct Row {
    BlockType type;
    std::vector<std::int64_t> dims;
  };
  std::map<std::string, Row> tensors;

  Draft() {
    ModelConfig c;
    c.hidden = 8;
    c.heads = 2;
    c.kv_heads = 1;
    c.head_dim = 4;
    c.experts = 3;
    c.expert_width = 4;
    c.vocab = 5;
    const Architecture& a = qwen3moe;
    for (const auto& specs : {a.first_tensors(c), a.layer_tensors(c, 0), a.last_tensors(c)})
      for (const TensorSpec& spec : specs) tensors[spec.name()] = {BlockType::f32, spec.dims()};
  }

  std::vector<std::byte> bytes() const {
    GgufHeader header;
    for (const auto& [key, value] : keys)
      std::visit([&header, name = key](const auto& v) { header.add(name, v); }, value);
    for (const auto& [name, row] : tensors) header.add_tensor(name, row.type, row.dims);
    std::vector<std::byte> all = header.bytes();
    all.resize(all.size() + header.data_bytes());
    return all;
  }
};

class Refusals {
 public:
  // What opening the model is refused with, after its path; empty when it is not.
  std::string of(const std::vector<std::byte>& bytes) {
    test::write_file(path_, bytes);
    try {
      Model::open(path_);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::environment);
      const std::string message = e.what();
      REQUIRE(message.substr(0, path_.size() + 2) == path_ + ": ");
      return message.substr(path_.size() + 2);
    }
    return {};
  }
  std::string of(const std::function<void(Draft&)>& edit) {
    Draft draft;
    edit(draft);
    return of(draft.bytes());
  }
  std::string of_key(const std::string& key, const Value& value) {
    return of([&](Draft& d) { d.keys[key] = value; });
  }
  const std::string& path() const { return path_; }

 private:
  test::Scratch scratch_{"refusal"};
  std::string path_ = scratch_.path("m.gguf");
};

TEST_CASE("the draft is a model, tied output and vocabulary as well") {
  Refusals refused;
  CHECK(refused.of([](Draft&) {}) == "");
  CHECK(refused.of([](Draft& d) { d.tensors.erase("output.weight"); }) == "");
  CHECK(refused.of_key("qwen3moe.vocab_size", 5u) == "");
}

TEST_CASE("another architecture is refused with what it is and what is supported") {
  Refusals refused;
  CHECK(refused.of_key("general.architecture", "llama") ==
        "the architecture is 'llama'; supported: 'qwen2moe', 'qwen3moe'");
  CHECK(refused.of_key("general.architecture", "qwen3") ==
        "the architecture is 'qwen3', a dense model without experts; supported: 'qwen2moe', 'qwen3moe'");
  CHECK(refused.of([](Draft& d) { d.keys.erase("general.architecture"); }) ==
        "metadata key 'general.architecture' is missing, expected 'qwen2moe', 'qwen3moe'");
}

TEST_CASE("a file that may be a part of a split model is called that, by its keys or by its name") {
  Refusals refused;
  CHECK(refused.of_key("split.count", 4u) == "one of 4 parts of a split model, but metadata key 'split.no' is missing");
  CHECK(refused.of_key("split.count", 1001u) == "metadata key 'split.count' is 1001, expected 0 to 1000");
  CHECK(refused.of([](Draft& d) {
    d.keys["split.no"] = 0u;
    d.keys["split.count"] = 1u;
  }) == "");

  const test::Scratch scratch("split");
  Draft without_keys;
  without_keys.keys.clear();
  const std::string part = scratch.path("m-00002-of-00003.gguf");
  test::write_file(part, without_keys.bytes());
  CHECK_THROWS_WITH(Model::open(part), part +
                                           ": part 2 of 3 of a split model, by its name; its metadata does not say so: "
                                           "key 'split.count' is missing");
  // A whole model keeps its name, whatever it was made of.
  const std::string whole = scratch.path("m-00001-of-00003.gguf");
  test::write_file(whole, Draft().bytes());
  CHECK_NOTHROW(Model::open(whole));
}

TEST_CASE("where a tensor is missing, what stands there instead is named") {
  using Catch::Matchers::Contains;
  Refusals refused;
  const auto renamed = [&](const std::string& from, const std::string& to) {
    return refused.of([&](Draft& d) {
      d.tensors[to] = d.tensors[from];
      d.tensors.erase(from);
    });
  };
  CHECK_THAT(renamed("blk.0.attn_q.weight", "blk.0.attn_qkv.weight"),
             Contains("tensor blk.0.attn_q.weight is missing") &&
                 Contains("found blk.0.attn_qkv.weight, queries, keys and values in one tensor: fused"));
  CHECK_THAT(renamed("blk.0.ffn_up_exps.weight", "blk.0.ffn_gate_up_exps.weight"),
             Contains("found blk.0.ffn_gate_up_exps.weight, gate and up in one tensor"));
  CHECK_THAT(renamed("blk.0.ffn_down_exps.weight", "blk.0.ffn_down.0.weight"),
             Contains("tensor blk.0.ffn_down_exps.weight is missing") &&
                 Contains("found blk.0.ffn_down.0.weight and more, a tensor an expert"));
  CHECK_THAT(renamed("blk.0.ffn_gate_inp.weight", "blk.0.router.weight"),
             Contains("found instead, not known here: 'blk.0.router.weight'"));
  CHECK_THAT(renamed("output_norm.weight", "norm.weight"), Contains("not known here: 'norm.weight'"));
  CHECK_THAT(refused.of([](Draft& d) {
    d.tensors["blk.0.attn_qkv.weight"] = {BlockType::f32, {8}};
  }),
             Contains("fused tensors are not supported"));
}

TEST_CASE("a missing, mistyped or impossible size is refused with its key") {
  Refusals refused;
  const Draft draft;
  for (const auto& [key, value] : draft.keys) {
    if (key == "general.architecture" || key == "qwen3moe.attention.value_length") continue;
    INFO(key);
    CHECK(refused.of([&key = key](Draft& d) { d.keys.erase(key); }) == "metadata key '" + key + "' is missing");
    CHECK_THAT(refused.of_key(key, "text"), Catch::Matchers::Contains("metadata key '" + key + "' is of type text"));
    CHECK_THAT(refused.of_key(key, 0u), Catch::Matchers::Contains("metadata key '" + key + "' is 0"));
  }
  CHECK(refused.of_key("qwen3moe.block_count", 4000000000u) ==
        "metadata key 'qwen3moe.block_count' is 4000000000, expected 1 to 16777216");
  CHECK(refused.of_key("qwen3moe.block_count", 16000000u) ==
        "tensor blk.1.attn_norm.weight is missing; expected one of shape [8] (fastest first)");
  CHECK(refused.of_key("qwen3moe.expert_used_count", 4u) ==
        "metadata key 'qwen3moe.expert_used_count' is 4, expected at most the 3 experts of 'qwen3moe.expert_count'");
  CHECK(refused.of_key("qwen3moe.attention.head_count_kv", 3u) ==
        "metadata key 'qwen3moe.attention.head_count_kv' is 3, expected a divisor of the 2 heads");
  CHECK_THAT(refused.of_key("qwen3moe.attention.key_length", 5u), Catch::Matchers::Contains("expected an even number"));
  CHECK_THAT(refused.of([](Draft& d) {
    d.keys["qwen3moe.attention.head_count"] = 1u << 20;
    d.keys["qwen3moe.attention.key_length"] = d.keys["qwen3moe.attention.value_length"] = 1u << 20;
  }),
             Catch::Matchers::Contains("expected 1073741824 at most"));
  CHECK(refused.of_key("qwen3moe.vocab_size", 6u) ==
        "metadata key 'qwen3moe.vocab_size' is 6, but tensor token_embd.weight has 5 rows");
  CHECK_THAT(refused.of_key("qwen3moe.rope.freq_base", std::numeric_limits<float>::quiet_NaN()),
             Catch::Matchers::Contains("'qwen3moe.rope.freq_base' is nan, expected a positive number"));
}

TEST_CASE("keys that change the mathematics are refused by name, and let pass when they say 'off'") {
  struct Case {
    std::string key;
    Value on, off;
  };
  const std::vector<Case> cases{
      {"rope.scaling.type", "yarn", "none"},    {"rope.scaling.factor", 4.0f, 1.0f},
      {"expert_weights_scale", 2.5f, 1.0f},     {"expert_weights_norm", false, true},
      {"expert_shared_count", 1u, 0u},          {"expert_shared_feed_forward_length", 64u, 0u},
      {"expert_gating_func", 2u, 1u},           {"leading_dense_block_count", 1u, 0u},
      {"attention.sliding_window", 4096u, 0u},  {"attention.scale", 0.5f, 0.0f},
      {"attention.causal", false, true},        {"logit_scale", 0.0625f, 1.0f},
      {"final_logit_softcapping", 30.0f, 0.0f}, {"attn_logit_softcapping", 50.0f, 0.0f},
      {"rope.dimension_count", 2u, 4u},         {"attention.value_length", 8u, 4u},
      {"rope.scale_linear", 2.0f, 1.0f},        {"embedding_scale", 12.0f, 1.0f},
  };
  Refusals refused;
  for (const Case& c : cases) {
    INFO(c.key);
    const std::string message = refused.of_key("qwen3moe." + c.key, c.on);
    CHECK_THAT(message, Catch::Matchers::Contains("metadata key 'qwen3moe." + c.key + "' is "));
    CHECK_THAT(message, Catch::Matchers::Contains("not supported"));
    CHECK(refused.of_key("qwen3moe." + c.key, c.off) == "");
  }
  CHECK(refused.of_key("qwen3moe.something_new", 1u) ==
        "metadata key 'qwen3moe.something_new' is not known and may change what is computed; if it does not, remove it "
        "from the file");
  CHECK(refused.of_key("qwen3moe.feed_forward_length", 99u) == "");
  CHECK(refused.of_key("other.expert_shared_count", 1u) == "");
}

TEST_CASE("missing, misshapen, mistyped and extra tensors are refused by name") {
  Refusals refused;
  const Draft draft;
  for (const auto& [name, row] : draft.tensors) {
    INFO(name);
    if (name != "output.weight")
      CHECK_THAT(refused.of([&name = name](Draft& d) { d.tensors.erase(name); }),
                 Catch::Matchers::Contains("tensor " + name + " is missing"));
    CHECK_THAT(refused.of([&name = name](Draft& d) { d.tensors[name].dims[0] += 1; }),
               Catch::Matchers::Contains("tensor " + name + " has shape ["));
  }
  CHECK(refused.of([](Draft& d) {
    d.tensors["blk.0.attn_q.weight"].dims = {8, 9};
  }) == "tensor blk.0.attn_q.weight has shape [8, 9], expected [8, 8] (fastest first: columns, rows, experts)");
  CHECK_THAT(refused.of([](Draft& d) { d.tensors["blk.0.ffn_norm.weight"].type = BlockType::f16; }),
             Catch::Matchers::Contains("tensor blk.0.ffn_norm.weight is of type F16, expected F32 for a norm"));
  const auto with = [&](const std::string& name) {
    return refused.of([&name](Draft& d) { d.tensors[name] = {BlockType::f32, {8}}; });
  };
  CHECK(with("blk.0.attn_q.bias") ==
        "tensor 'blk.0.attn_q.bias' is no part of a qwen3moe model: this bias is not supported");
  CHECK_THAT(with("rope_freqs.weight"), Catch::Matchers::Contains("RoPE frequency factors are not supported"));
  CHECK_THAT(with("blk.0.ffn_up_shexp.weight"), Catch::Matchers::Contains("shared experts are not supported"));
  CHECK_THAT(with("blk.0.ffn_gate.weight"), Catch::Matchers::Contains("dense feed-forward layers"));
  CHECK_THAT(with("blk.1.attn_norm.weight"), Catch::Matchers::Contains("'blk.1.attn_norm.weight' is no part"));
}

TEST_CASE("every prefix of a model is refused, and no random bytes do more") {
  Refusals refused;
  const std::vector<std::byte> bytes = Draft().bytes();
  for (std::size_t size = 0; size < bytes.size(); size += size < 300 ? 1 : 7) {
    INFO("first " << size << " of " << bytes.size() << " bytes");
    CHECK(refused.of(std::vector(bytes.begin(), bytes.begin() + static_cast<std::ptrdiff_t>(size))) != "");
  }
  std::mt19937 random(11);
  int opened = 0;
  for (int round = 0; round < 3000; ++round) {
    std::vector<std::byte> broken = bytes;
    broken[random() % broken.size()] = static_cast<std::byte>(random());
    opened += refused.of(broken).empty() ? 1 : 0;
  }
  CHECK(opened > 0);
  CHECK(opened < 3000);
}

}  // namespace
}  // namespace moe_diag
