// SPDX-License-Identifier: MIT
#include "core/contract/contract.hpp"

#include <cstdlib>
#include <string>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/contract/metric.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

constexpr const char* small = R"(metadata: {id: small, version: 1.0.0, description: a small contract}
model: {synthetic: tiny, seed: 7}
prompts:
  - {id: short, tokens: [3, 141, 59]}
  - {id: v1.2, tokens: [1, 2]}
oracle: truth
lanes:
  truth: {backend: cpu, numerics: f64}
  f32: {backend: cpu, numerics: f32, threads: 2}
  step: {backend: cpu, numerics: f32, inputs: truth}
  routed: {backend: cpu, numerics: f32, routing: truth}
falsifiers:
  - {id: AGREE, claim: it agrees, lane: f32, stage: moe_ffn_out, metric: cosine_similarity, at_least: 0.99}
)";

Contract with(const std::vector<Override>& overrides) { return parse_contract(small, "folder/small.yaml", overrides); }
Contract with(const std::string& path, const std::string& value) { return with({{path, value}}); }
// The contract with one falsifier, given in flow form.
FalsifierSpec falsifier(const std::string& keys) {
  return with("falsifiers.0", "{id: F, claim: c, " + keys + "}").falsifiers.at(0);
}

TEST_CASE("what is not said has its default") {
  const FalsifierSpec f = with({}).falsifiers.at(0);
  CHECK(f.against == "truth");
  CHECK(f.layers.text() == "all");
  CHECK(f.positions.text() == "all");
  CHECK(f.prompts.empty());
  CHECK(f.controls.empty());
  const Contract c = with({{"sinks", "{s: {sink: stats}}"}, {"capture", "[{stages: all, to: s}]"}});
  const CaptureSpec& capture = c.capture.at(0);
  CHECK(capture.stages.stages.size() == qwen3moe.stages.size());
  CHECK(capture.layers.text() == "all");
  CHECK(capture.positions.text() == "all");
  CHECK(capture.lanes == std::vector<std::string>{"truth", "f32", "step", "routed"});
  CHECK(capture.to == std::vector<std::string>{"s"});
}

TEST_CASE("options keep the scalars as written and know their place") {
  const Contract c = with({});
  const Options& o = c.lanes.at(1).options;
  CHECK(o.read(IntegerOption{"threads", "", "1", 1, 64, "x"}) == 2);
  CHECK(o.owner() == "lane 'f32'");
  REQUIRE(o.entries().size() == 2);
  CHECK(o.entries()[0].key == "numerics");
  CHECK_FALSE(o.entries()[0].read);
  CHECK(o.entries()[1].where == "folder/small.yaml:9:47");
  CHECK(c.lanes.at(2).inputs == "truth");
  CHECK(c.lanes.at(3).routing == "truth");
}

TEST_CASE("an override replaces what a path leads to") {
  CHECK(with("falsifiers.AGREE.at_least", "0.5").falsifiers[0].bound.value == 0.5);
  CHECK(with("falsifiers.0.at_least", "0.5").falsifiers[0].bound.value == 0.5);
  CHECK(with("prompts.short.tokens", "[1, 2]").prompts[0].tokens == std::vector<std::int32_t>{1, 2});
  CHECK(with("prompts.v1.2.tokens", "[9]").prompts[1].tokens == std::vector<std::int32_t>{9});
  CHECK(with("prompts.short.tokens.1", "9").prompts[0].tokens[1] == 9);
  CHECK(with("lanes.f32.numerics", "bf16").lanes[1].options.entry("numerics")->value == "bf16");
  CHECK(with("lanes.f32.extra", "1").lanes[1].options.entry("extra")->value == "1");
  CHECK(with("model", "{synthetic: tiny, seed: 9}").model.seed == 9);
  CHECK(with({{"model.layers", "2"}, {"model.layers", "3"}}).model.layers == 3);
}

TEST_CASE("an override whose key ends in + adds an item to a list") {
  const std::string claim = "{id: MORE, claim: m, lane: f32, stage: lm_head, metric: nonfinite, equals: 0}";
  const Contract c = with({{"falsifiers+", claim}});
  CHECK(c.falsifiers.size() == with({}).falsifiers.size() + 1);
  CHECK(c.falsifiers.back().id == "MORE");
  CHECK(with({{"prompts.short.tokens+", "9"}}).prompts[0].tokens.back() == 9);
  CHECK(with({{"planted+", "{inject: nan, stage: lm_head, lane: f32}"}}).planted.size() == 1);
  CHECK_THROWS_WITH(with("model+", "1"), Contains("--set model+: '+=' adds an item to a list, and this is none"));
  CHECK_THROWS_WITH(with("falsifers+", claim), Contains("did you mean 'falsifiers'?"));
}

TEST_CASE("a model of another kind that --set adds is told how to take the whole place") {
  CHECK_THROWS_WITH(with("model.gguf", "m.gguf"), Contains("keep one of 'gguf' and 'synthetic'") &&
                                                      Contains("set the whole model: --set 'model={gguf: m.gguf}'"));
}

TEST_CASE("an override keeps the place of what it replaces") {
  const Contract c = with("model", "{synthetic: tiny}");
  CHECK(c.at(c.model.where) == "folder/small.yaml:2:8");
}

TEST_CASE("an override is refused where it leads nowhere") {
  CHECK_THROWS_WITH(with("falsifiers.AGREED.at_least", "0.5"),
                    "--set falsifiers.AGREED.at_least: unknown key 'AGREED', did you mean 'AGREE'? Known: AGREE");
  CHECK_THROWS_WITH(with("lanes.f33.numerics", "f32"), Contains("did you mean 'f32'?"));
  CHECK_THROWS_WITH(with("prompts.7", "1"), Contains("unknown key '7'. Known: short, v1.2"));
  CHECK_THROWS_WITH(with("", "1"), Contains("expected KEY.PATH=VALUE"));
  CHECK_THROWS_WITH(with("model.", "1"), Contains("expected KEY.PATH=VALUE"));
  CHECK_THROWS_WITH(with("oracle.x", "1"), Contains("--set oracle.x: unknown key 'x'"));
}

TEST_CASE("a mistake in a value of --set is told there") {
  CHECK_THROWS_WITH(with("falsifiers.AGREE.at_least", "010"),
                    Contains("--set falsifiers.AGREE.at_least: falsifiers.AGREE."));
  CHECK_THROWS_WITH(with("falsifiers.AGREE.at_laest", "1"),
                    Contains("--set falsifiers.AGREE.at_laest") && Contains("did you mean 'at_least'"));
  CHECK_THROWS_WITH(with("model.seed", "*x"), Contains("--set model.seed: an alias") && Contains("quote"));
  CHECK_THROWS_WITH(with("model.seed", ""), Contains("--set model.seed: model.seed: expected a whole number"));
  CHECK_THROWS_WITH(with("prompts.short.tokens", "[1, x]"),
                    Contains("--set prompts.short.tokens: prompts.short.tokens.1"));
}

TEST_CASE("variables in model.gguf come from the environment") {
  const std::string value = "{gguf: \"${MOE_DIAG_TEST_FOLDER}/m.gguf\"}";
  ::unsetenv("MOE_DIAG_TEST_FOLDER");
  CHECK(with("model", value).model.unset_variable == "MOE_DIAG_TEST_FOLDER");
  ::setenv("MOE_DIAG_TEST_FOLDER", "", 1);
  CHECK(with("model", value).model.unset_variable == "MOE_DIAG_TEST_FOLDER");
  ::setenv("MOE_DIAG_TEST_FOLDER", "/models", 1);
  CHECK(with("model", value).model.unset_variable.empty());
  CHECK(with("model", value).model.gguf == "/models/m.gguf");
  ::setenv("MOE_DIAG_TEST_FOLDER", "models", 1);
  CHECK(with("model", value).model.gguf == "folder/models/m.gguf");
  ::unsetenv("MOE_DIAG_TEST_FOLDER");
  CHECK(with("model", "{gguf: m.gguf}").model.gguf == "folder/m.gguf");
  for (const std::string bad : {"$X/m", "${}", "${X", "a$"})
    CHECK_THROWS_WITH(with("model", "{gguf: '" + bad + "'}"), Contains("write it ${NAME}"));
}

TEST_CASE("a synthetic model stands in where the variable is not set, and nowhere else") {
  const std::string value =
      "{gguf: \"${MOE_DIAG_TEST_MODEL}\", when_unset: {synthetic: tiny, layers: 2, router_scale: 0}}";
  ::unsetenv("MOE_DIAG_TEST_MODEL");
  const ModelSource other = with("model", value).model;
  CHECK(other.stands_in_for == "MOE_DIAG_TEST_MODEL");
  CHECK(other.synthetic == "tiny");
  CHECK(other.layers == 2);
  CHECK(other.router_scale == 0);
  CHECK(other.gguf.empty());
  CHECK(other.unset_variable.empty());
  ::setenv("MOE_DIAG_TEST_MODEL", "/no/such/model.gguf", 1);
  const ModelSource named = with("model", value).model;
  CHECK(named.gguf == "/no/such/model.gguf");
  CHECK(named.synthetic.empty());
  CHECK(named.stands_in_for.empty());
  ::unsetenv("MOE_DIAG_TEST_MODEL");
}

TEST_CASE("the forms of a number") {
  const auto value = [](const std::string& text) {
    return with("falsifiers.AGREE.at_least", text).falsifiers[0].bound.value;
  };
  CHECK(value("1") == 1);
  CHECK(value("-0.5") == -0.5);
  CHECK(value("1e-5") == 1e-5);
  CHECK(value("2.5E-1") == 0.25);
  CHECK(value("0") == 0);
  for (const std::string bad : {"+1", ".5", "1.", "1_000", "0x1p3", "00.5", "1e", "--1", "1e400", "1e-400", "nan",
                                "-.inf", "0b1", "true", "~", "'1'", "[1]", "{a: 1}", "1 2"}) {
    INFO(bad);
    CHECK_THROWS_AS(value(bad), Error);
  }
}

TEST_CASE("a byte order mark and Windows line ends are taken") {
  std::string text = std::string("\xEF\xBB\xBF") + small;
  for (std::size_t i = 0; (i = text.find('\n', i)) != std::string::npos; i += 2) text.replace(i, 1, "\r\n");
  CHECK(parse_contract(text, "c.yaml").prompts.size() == 2);
}

TEST_CASE("stages of a falsifier: names must fit the metric, globs take what fits") {
  const FalsifierSpec f = falsifier("lane: f32, stage: 'moe_router*', metric: router_sum_error, at_most: 1e-6");
  CHECK(f.stages.stages == std::vector<Stage>{stages::moe_router_probs, stages::moe_router_weights});
  CHECK(f.against.empty());
  CHECK_THROWS_WITH(falsifier("lane: f32, stage: [lm_head, moe_ffn_out], metric: argmax_agree, equals: 1"),
                    Contains("argmax_agree does not fit the stage moe_ffn_out: it fits moe_router_logits, "
                             "moe_router_probs, lm_head"));
}

TEST_CASE("the stages each metric and fault fits") {
  const auto count = [](auto what) {
    std::size_t n = 0;
    for (const Stage s : qwen3moe.stages) n += fits(what, s);
    return n;
  };
  for (const Metric m : {Metric::cosine_similarity, Metric::rel_l2, Metric::max_abs_diff, Metric::mismatch_fraction,
                         Metric::nonfinite, Metric::nonfinite_beyond, Metric::ulp, Metric::noise_ratio})
    CHECK(count(m) == qwen3moe.stages.size() - 1);
  for (const Metric m : {Metric::argmax_agree, Metric::topk_overlap, Metric::kl}) CHECK(count(m) == 3);
  CHECK(count(Metric::router_sum_error) == 2);
  for (const Metric m : {Metric::routing_flips, Metric::routing_real_flips}) CHECK(count(m) == 1);
  CHECK(count(FaultSpec::Kind::nan) == qwen3moe.stages.size() - 1);
  CHECK(count(FaultSpec::Kind::wrong_expert) == 4);
  CHECK(count(FaultSpec::Kind::transpose) == 7);
  for (std::size_t i = 0; i < fault_table.size(); ++i) CHECK(static_cast<std::size_t>(fault_table[i].kind) == i);
  for (const FaultInfo& f : fault_table) CHECK(count(f.kind) > 0);
  for (std::size_t i = 0; i < metric_table.size(); ++i) CHECK(static_cast<std::size_t>(metric_table[i].metric) == i);
}

TEST_CASE("what a lane has is its own, what it has beyond another needs that one") {
  CHECK(falsifier("lane: f32, stage: all, metric: nonfinite, equals: 0").against.empty());
  CHECK(falsifier("lane: truth, stage: all, metric: nonfinite, equals: 0").against.empty());
  CHECK(falsifier("lane: f32, stage: all, metric: nonfinite_beyond, equals: 0").against == "truth");
  CHECK(falsifier("lane: truth, against: f32, stage: all, metric: nonfinite_beyond, equals: 0").against == "f32");
  CHECK(falsifier("lane: f32, stage: moe_expert_out, experts: 3, metric: nonfinite, equals: 0").experts.has_value());
}

TEST_CASE("controls that may be seen are taken") {
  const std::string free = "lane: f32, stage: moe_ffn_out, metric: rel_l2, at_most: 0.1, ";
  CHECK(falsifier(free + "controls: [{inject: nan, stage: embedding}]").controls.size() == 1);
  CHECK(falsifier(free + "controls: [{inject: nan, stage: post_ffn_residual, layer: 2}]").controls.size() == 1);
  CHECK(falsifier(free + "layers: [0, 4], controls: [{inject: nan, stage: post_ffn_residual, layer: 3}]")
            .controls.size() == 1);
  CHECK(falsifier(free + "layers: -1, controls: [{inject: nan, stage: post_ffn_residual, layer: 3}]").controls.size() ==
        1);
  CHECK(falsifier(free + "positions: last, controls: [{inject: nan, stage: attn_out, layer: 3, positions: 0}]")
            .controls.size() == 1);
  const std::string fed = "lane: step, stage: moe_ffn_out, metric: cosine_similarity, at_least: 0.9, ";
  CHECK(falsifier(fed + "controls: [{inject: nan, stage: moe_ffn_out, layer: 2}]").controls.size() == 1);
  CHECK(falsifier(fed + "controls: [{inject: scale, factor: -1, stage: moe_ffn_out, layer: 2}]").controls[0].factor ==
        -1);
  CHECK(falsifier(fed + "layers: -1, controls: [{inject: nan, stage: moe_ffn_out, layer: 2}]").controls.size() == 1);
  const std::string routed = "lane: routed, stage: moe_router_indices, metric: routing_flips, equals: 0, ";
  CHECK(falsifier(routed + "controls: [{inject: scale, stage: moe_router_logits, layer: 2}]").controls.size() == 1);
}

TEST_CASE("controls that cannot be seen are refused") {
  const std::string fed = "lane: step, stage: moe_ffn_out, metric: rel_l2, at_most: 0.1, ";
  CHECK_THROWS_WITH(
      falsifier(fed + "positions: 0, controls: [{inject: nan, stage: moe_ffn_out, layer: 2, positions: 1}]"),
      Contains("reaches none of the positions 0"));
  const std::string embedding = "lane: f32, stage: embedding, metric: rel_l2, at_most: 0.1, ";
  CHECK_THROWS_WITH(falsifier(embedding + "controls: [{inject: nan, stage: attn_norm, layer: 0}]"),
                    Contains("the last of which is embedding"));
  const std::string norm = "lane: f32, stage: final_norm, metric: rel_l2, at_most: 0.1, ";
  CHECK_THROWS_WITH(falsifier(norm + "controls: [{inject: nan, stage: lm_head}]"), Contains("can never be seen"));
}

TEST_CASE("a control is refused only where its fault makes no difference to the metric") {
  const auto takes = [](const std::string& claim, const std::string& fault) {
    try {
      return falsifier(claim + ", controls: [" + fault + "]").controls.size() == 1;
    } catch (const Error& e) {
      CHECK_THAT(e.what(), Contains("can never be seen"));
      return false;
    }
  };
  const std::string norm = "stage: ffn_norm, metric: cosine_similarity, at_least: 0.9",
                    skip = "{inject: skip_norm, stage: ffn_norm, layer: 1}";
  CHECK_FALSE(takes("lane: step, " + norm, skip));
  CHECK(takes("lane: f32, " + norm, skip));  // seen in the next layer
  CHECK(takes("lane: step, stage: q_norm, metric: cosine_similarity, at_least: 0.9",
              "{inject: skip_qk_norm, stage: q_norm, layer: 1}"));
  const std::string finite = "stage: moe_expert_out, metric: nonfinite, equals: 0";
  CHECK(takes("lane: step, " + finite, "{inject: inf, stage: moe_expert_out, layer: 1}"));
  CHECK(takes("lane: step, " + finite, "{inject: wrong_type, stage: moe_expert_out, layer: 1}"));
  CHECK_FALSE(takes("lane: step, " + finite, "{inject: transpose, stage: moe_expert_out, layer: 1}"));
  const std::string real = "lane: f32, stage: moe_router_indices, metric: routing_real_flips, equals: 0";
  CHECK(takes(real, "{inject: swap_tie, stage: moe_router_indices, layer: 1}"));
  CHECK(takes(real, "{inject: inf, stage: attn_norm, layer: 1}"));
  CHECK(takes(real, "{inject: zero, stage: moe_router_probs, layer: 1}"));
  CHECK_FALSE(takes(real, "{inject: transpose, stage: moe_router_logits, layer: 1}"));
  CHECK_FALSE(takes(real, "{inject: stale_kv, stage: attn_scores, layer: 1}"));
  const std::string scores = "lane: step, stage: attn_scores, metric: rel_l2, at_most: 0.1, positions: ";
  CHECK(takes(scores + "last", "{inject: stale_kv, stage: attn_scores, layer: 1, positions: 1}"));
  CHECK_FALSE(takes(scores + "0", "{inject: stale_kv, stage: attn_scores, layer: 1}"));
  const std::string query = "lane: step, stage: q_post_rope, metric: rel_l2, at_most: 0.1, positions: 0";
  CHECK_FALSE(takes(query, "{inject: rope_interleaved, stage: q_post_rope, layer: 1}"));
  CHECK(takes(query, "{inject: off_by_one_position, stage: q_post_rope, layer: 1}"));
}

TEST_CASE("planted faults are read as those of the command line") {
  CHECK(with({}).planted.empty());
  const Contract c = with({{"planted",
                            "[{inject: wrong_type, stage: attn_out, layer: 2, type: q6_k, lane: f32}, "
                            "{inject: zero, stage: moe_expert_up, layer: 1, expert: 3, lane: step}]"}});
  REQUIRE(c.planted.size() == 2);
  CHECK(c.planted[0].text == "wrong_type Q6_K at attn_out, layer 2");
  CHECK(c.planted[0].lane == "f32");
  CHECK(c.planted[0].type == BlockType::q6_k);
  CHECK(c.planted[1].text == "zero at moe_expert_up, layer 1, expert 3");
}

TEST_CASE("faults are told as they were written") {
  const Contract c = with({});
  const auto told = [&](const std::string& fault) { return parse_fault("{" + fault + ", lane: f32}", c).text; };
  CHECK(told("inject: bitflip, stage: lm_head, bit: 30, index: 4") == "bitflip of bit 30 at lm_head, element 4");
  CHECK(told("inject: bitflip, stage: lm_head") == "bitflip at lm_head");
  CHECK(told("inject: rope_theta, stage: q_post_rope, layer: 1") == "rope_theta 10000 at q_post_rope, layer 1");
  CHECK(told("inject: quantise_activations, stage: lm_head, block: 32, positions: last") ==
        "quantise_activations in blocks of 32 at lm_head, positions last");
}

TEST_CASE("a fault of the command line") {
  const Contract c = with({});
  const FaultSpec f = parse_fault("{inject: nan, stage: moe_expert_out, layer: 6, lane: f32}", c);
  CHECK(f.kind == FaultSpec::Kind::nan);
  CHECK(f.stage == stages::moe_expert_out);
  CHECK(f.layer == 6);
  CHECK(f.lane == "f32");
  CHECK(f.text == "nan at moe_expert_out, layer 6");
  CHECK(parse_fault("{inject: scale, stage: LM_HEAD, lane: f32}", c).factor == 2);
  CHECK_THROWS_WITH(parse_fault("{inject: nan, stage: moe_expert_out, layer: 6}", c),
                    "--inject: the key 'lane' is missing");
  CHECK_THROWS_WITH(parse_fault("{inject: nan, stage: moe_expert_out, layer: 6, lane: f23}", c),
                    "--inject: lane: unknown lane 'f23', did you mean 'f32'? Known: truth, f32, step, routed");
  CHECK_THROWS_WITH(parse_fault("nan at moe_expert_out", c), Contains("--inject: expected a map"));
  CHECK_THROWS_WITH(parse_fault("", c), Contains("--inject: expected a map of keys and values, found nothing"));
  CHECK_THROWS_WITH(parse_fault("{inject: [", c), Contains("--inject: not YAML"));
}

}  // namespace
}  // namespace moe_diag
