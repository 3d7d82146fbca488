// SPDX-License-Identifier: MIT
// What `cases` writes, of which spans, and which spans it refuses.
#include <cmath>
#include <set>
#include <string>

#include "core/api/error.hpp"
#include "core/kernel/span.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/kernel_cases.hpp"
#include "tests/support/own_kernel.hpp"
#include "tests/support/process.hpp"

namespace moe_diag::test {
namespace {

std::string refusal(const std::string& span, const std::vector<CaseRouting>& routings = {CaseRouting::model}) {
  try {
    const Cases cases("f32", {2}, span, routings);
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "";
}

// What was expected, written as the kernel's own in f32.
void write_expected(const Cases& cases) {
  const CaseIndex index = read_index(cases.folder());
  for (const KernelCase& c : index.cases) {
    const OwnFile expected(cases.path(c.name + "/expected.safetensors"));
    const StoredTensor t = expected.tensor(index.output);
    write_out(cases.path(c.name + "/out.safetensors"), out_of(index.output, floats_of(t), t.shape));
  }
}

}  // namespace

TEST_CASE("a case has the inputs, the weights and what is expected") {
  const Cases cases("f32", {1, 16}, "moe_ffn", {});
  const CaseIndex index = read_index(cases.folder());
  CHECK(index.steps == std::vector<std::string>{"moe_expert_gate", "moe_expert_up", "moe_expert_swiglu",
                                                "moe_expert_out", "moe_expert_weighted", "moe_ffn_out"});
  CHECK(index.output == "moe_ffn_out");
  CHECK(index.choice == "moe_router_indices");
  CHECK(index.cases.size() == 6);
  CHECK(index.cases[5].name == "layer_01_rows_16_none");
  const OwnFile in(cases.path("layer_01_rows_16/in.safetensors"));
  CHECK(std::set<std::string>{"ffn_norm", "moe_router_indices", "moe_router_weights"} ==
        [names = in.file.names()] { return std::set<std::string>(names.begin(), names.end()); }());
  CHECK(in.file.find("ffn_norm")->dtype == "F32");
  CHECK(in.file.find("moe_router_indices")->dtype == "I32");
  const OwnFile weights(cases.path(index.layers.at(0).file));
  const SafeTensor* bytes = weights.file.find("blk.1.ffn_gate_exps.weight");
  REQUIRE(bytes);
  CHECK(bytes->dtype == "U8");
  CHECK(weights.file.metadata.at("blk.1.ffn_gate_exps.weight.type") == "Q4_K");
  CHECK(weights.file.metadata.at("blk.1.ffn_gate_exps.weight.shape") == "[12, 256, 256]");
  CHECK(weights.file.find("blk.1.ffn_gate_exps.weight.f32")->shape == std::vector<std::int64_t>{12, 256, 256});
  const OwnFile expected(cases.path("layer_01_rows_16/expected.safetensors"));
  CHECK(expected.file.find("moe_ffn_out")->dtype == "F64");
  for (const double allowed : index.cases[1].allowed.at(DType::f32)) {
    CHECK(allowed > 1e-7);
    CHECK(allowed < 1e-5);
  }
}

TEST_CASE("fewer rows are the first rows of more, and routings are as they are called") {
  const Cases cases("bf16", {2, 16}, "moe_ffn", {});
  const OwnFile few(cases.path("layer_01_rows_2/in.safetensors")), many(cases.path("layer_01_rows_16/in.safetensors"));
  const StoredTensor a = few.tensor("ffn_norm"), b = many.tensor("ffn_norm");
  CHECK(a.dtype == DType::bf16);
  CHECK(std::equal(a.bytes.begin(), a.bytes.end(), b.bytes.begin()));
  const OwnFile one(cases.path("layer_01_rows_16_one/in.safetensors")),
      none(cases.path("layer_01_rows_16_none/in.safetensors"));
  const StoredTensor same = one.tensor("moe_router_indices"), hole = none.tensor("moe_router_indices");
  const auto* ids = same.tensor().as<std::int32_t>();
  for (int i = 0; i < 16 * 3; ++i) CHECK(ids[i] == ids[i % 3]);
  const CaseIndex index = read_index(cases.folder());
  const auto* holed = hole.tensor().as<std::int32_t>();
  for (int i = 0; i < 16 * 3; ++i)
    CHECK_FALSE(holds(index.cases.back().changed, "no row chooses expert " + std::to_string(holed[i]) + ":"));
}

TEST_CASE("spans of one step and of several are written, and what is expected of them holds") {
  for (const std::string span :
       {"moe_expert_gate", "moe_expert_swiglu", "moe_expert_weighted", "moe_ffn_out", "moe_router_weights", "ffn_norm",
        "ffn_norm..moe_router_probs", "moe_expert_gate..moe_expert_out", "q_norm..q_post_rope", "qkv_matmul",
        "post_ffn_residual", "attn_norm", "lm_head", "final_norm..lm_head"}) {
    INFO(span);
    const Cases cases("f32", {1, 5}, span);
    write_expected(cases);
    CHECK(cases.judged().count(CaseOutcome::held) == 2);
  }
}

TEST_CASE("spans with attention have what the caches hold of the positions before") {
  const std::string span = "attn_norm..post_attn_residual";
  const Cases cases("f32", {1, 5}, span);
  const CaseIndex index = read_index(cases.folder());
  REQUIRE(index.cases.size() == 4);
  CHECK(index.cases[1].first == 0);
  CHECK(index.cases[3].name == "layer_01_rows_5_cached_32");
  CHECK(index.cases[3].first == 32);
  const OwnFile none(cases.path("layer_01_rows_5/in.safetensors"));
  const OwnFile in(cases.path("layer_01_rows_5_cached_32/in.safetensors"));
  for (const std::string cache : {"keys", "values"}) {
    CHECK(none.file.find(cache)->shape[0] == 0);
    CHECK(in.file.find(cache)->shape[0] == 32);
  }
  write_expected(cases);
  CHECK(cases.judged().count(CaseOutcome::held) == 4);
  // What a long prompt makes of a position is what is made of it when those before are cached.
  const Cases whole("f32", {37}, span);
  const OwnFile long_one(whole.path("layer_01_rows_37/expected.safetensors")),
      cached(cases.path("layer_01_rows_5_cached_32/expected.safetensors"));
  const StoredTensor a = long_one.tensor("post_attn_residual"), b = cached.tensor("post_attn_residual");
  double off = 0, all = 0;
  for (std::int64_t i = 0; i < b.shape.count(); ++i) {
    const double expected = a.tensor().value(32 * b.shape.row() + i);
    off += std::pow(b.tensor().value(i) - expected, 2);
    all += expected * expected;
  }
  CHECK(std::sqrt(off / all) < 1e-6);
}

TEST_CASE("a name that is no file and no preset says which preset is near") {
  const Finished tny = run_tool("cases tny --span moe_ffn --out nowhere");
  CHECK(tny.code == 2);
  CHECK(holds(tny.err, "tny: there is no such file; unknown preset"));
  CHECK(holds(tny.err, "did you mean 'tiny'?"));
}

TEST_CASE("the experts of another architecture are found by what their steps do") {
  const Cases cases("f32", {3}, "moe_ffn", {}, {.preset = "tiny-qwen2moe", .layers = 2});
  write_expected(cases);
  CHECK(cases.judged().count(CaseOutcome::held) == 3);
}

TEST_CASE("spans that no case can be written of are refused by name") {
  CHECK(holds(refusal("moe_fnn"), "unknown stage 'moe_fnn', did you mean 'moe_ffn'?"));
  CHECK(holds(refusal("attn_norm..attn_scores"), "ends with attn_scores, which has a value for each key"));
  CHECK(holds(refusal("attention"),
              "reads attn_softmax, which has a value for each key and is not written as a case: "
              "expected a span with all of attention in it; take attn_scores..attention"));
  CHECK(holds(refusal("embedding"), "steps that read tokens are not written as cases yet: embedding does"));
  CHECK(holds(refusal("moe_ffn_out..moe_expert_gate"), "write moe_expert_gate..moe_ffn_out"));
  CHECK(holds(refusal("moe_expert_gate..moe_expert_up"), "moe_expert_up does not follow from moe_expert_gate"));
  CHECK(holds(refusal("moe_router_logits..moe_ffn_out"), "chooses experts, near-ties of which"));
  CHECK(holds(refusal("moe_router_indices"), "take moe_router_weights"));
  CHECK(holds(refusal("moe_ffn_out..lm_head"), "are not of the same layer"));
  CHECK(holds(refusal("ffn_norm", {CaseRouting::one}), "--routing one: ffn_norm reads no choice of experts"));
}

TEST_CASE("gate and up come as one tensor, and all rows go to one rank, where that is asked for") {
  const TemporaryFolder folder;
  const std::string out = folder / "cases";
  REQUIRE(run_tool("cases tiny --span moe_ffn --layers 2 --rows 9 --routing rank --fused --out " + quoted(out)).code ==
          0);
  const CaseIndex index = read_index(out);
  REQUIRE(index.cases.size() == 1);
  CHECK(index.cases[0].name == "layer_02_rows_9_rank");
  CHECK(index.cases[0].changed == "all rows choose among experts 0 to 2: those of one rank");
  const OwnFile in(out + "/layer_02_rows_9_rank/in.safetensors"), weights(out + "/" + index.layers.at(0).file);
  const StoredTensor ids = in.tensor("moe_router_indices");
  for (std::int64_t row = 0; row < 9; ++row) {
    std::set<double> chosen;
    for (std::int64_t slot = 0; slot < 3; ++slot) chosen.insert(ids.tensor().value(row * 3 + slot));
    CHECK(chosen == std::set<double>{0, 1, 2});
  }

  const SafeTensor* bytes = weights.file.find("blk.2.ffn_gate_up_exps.weight");
  REQUIRE(bytes);
  CHECK(bytes->data.size() == 2 * weights.file.find("blk.2.ffn_gate_exps.weight")->data.size());
  CHECK(weights.file.metadata.at("blk.2.ffn_gate_up_exps.weight.shape") == "[12, 512, 256]");
  const StoredTensor both = weights.tensor("blk.2.ffn_gate_up_exps.weight.f32"),
                     gate = weights.tensor("blk.2.ffn_gate_exps.weight.f32"),
                     up = weights.tensor("blk.2.ffn_up_exps.weight.f32");
  constexpr std::int64_t half = 256 * 256;  // values of an expert's matrix
  for (std::int64_t i = 0; i < 12 * half; ++i) {
    const std::int64_t at = i / half * 2 * half + i % half;
    REQUIRE(both.tensor().value(at) == gate.tensor().value(i));
    REQUIRE(both.tensor().value(at + half) == up.tensor().value(i));
  }
  const Finished refused = run_tool("cases tiny --span ffn_norm --rows 2 --fused --out " + quoted(folder / "other"));
  CHECK(refused.code == 2);
  CHECK(holds(refused.err, "--fused: the span does not hold the products of gate and up"));
  CHECK_FALSE(std::filesystem::exists(folder / "other"));
}

TEST_CASE("a folder that is there is replaced only when it holds cases, and when that is asked for") {
  const TemporaryFolder folder;
  const std::string out = folder / "cases", again = "cases tiny --span ffn_norm --rows 2 --out " + quoted(out);
  CHECK(run_tool(again).code == 0);
  CHECK(holds(run_tool(again).err, "is there already; choose another --out, or replace it with --overwrite"));
  CHECK(run_tool(again + " --overwrite").code == 0);
  write_text(out + "/notes.txt", "mine");
  const Finished kept = run_tool(again + " --overwrite");
  CHECK(kept.code == 2);
  CHECK(holds(kept.err, "holds notes.txt, which is no part of cases"));
  CHECK(run_tool("cases nowhere.gguf --span ffn_norm --out " + quoted(folder / "other")).code == 2);
  CHECK(run_tool("cases tiny --span ffn_norm --layers 9 --out " + quoted(folder / "other")).code == 2);
  CHECK(run_tool("cases tiny --span ffn_norm --numerics f16 --out " + quoted(folder / "other")).code == 2);
  CHECK_FALSE(std::filesystem::exists(folder / "other"));
}

}  // namespace moe_diag::test
