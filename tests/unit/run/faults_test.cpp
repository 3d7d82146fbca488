// SPDX-License-Identifier: MIT
// Every kind of fault at every stage it fits is found at exactly its site; without faults nothing is found.
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <string>
#include <vector>

#include "core/contract/fault.hpp"
#include "core/verdict/controls.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/small_contract.hpp"
#include "tests/support/stages.hpp"

namespace moe_diag {
namespace {

using Kind = FaultSpec::Kind;

std::string claims_about(const std::string& lane) {
  return fmt::format(R"(
  - {{id: ERROR, claim: steps are right, lane: {0}, stage: all, metric: rel_l2, at_most: 1e-5}}
  - {{id: ROUTING, claim: routing is right, lane: {0}, stage: moe_router_indices, metric: routing_flips, equals: 0}}
)",
                     lane);
}

// All runs of this file are of few models, which are made once.
Verdict judge(const std::string& text, const std::vector<std::string>& faults) {
  static ModelCache models;
  RunOptions options;
  options.models = &models;
  options.explain = false;
  return judge_text(text, options, faults);
}

// The weights of these are F32, which has no other K-quant to be read as, and no scales.
bool reads_f32(Stage stage) { return name_of(stage) == "moe_router_logits" || name_of(stage) == "moe_shared_logit"; }

std::string fault_text(Kind kind, Site site, const std::string& lane, const std::string& more = "") {
  const std::string layer = site.layer < 0 ? "" : fmt::format(", layer: {}", site.layer);
  std::string needed;
  if (kind == Kind::wrong_type && reads_f32(site.stage)) needed = ", type: BF16";
  if (kind == Kind::f16_overflow) needed = ", limit: 1e-6";  // no value of the model is beyond what F16 holds
  return fmt::format("{{inject: {}, stage: {}{}{}{}, lane: {}}}", name_of(kind), name_of(site.stage), layer, needed,
                     more, lane);
}

std::vector<Stage> stages_of(Kind kind, Stages all = qwen3moe.stages) {
  std::vector<Stage> stages;
  for (const Stage s : all)
    if (fits(kind, s) && !(kind == Kind::wrong_scale && reads_f32(s))) stages.push_back(s);
  return stages;
}

// The sites of a stage that faults are planted at: of several layers, or the one it has.
std::vector<Site> sites_of(Stage stage, const std::vector<int>& layers) {
  if (info(stage).scope != Scope::layer) return {{stage, -1}};
  std::vector<Site> sites;
  for (int layer : layers) sites.push_back({stage, layer});
  return sites;
}

std::vector<std::string> told(const std::set<Site>& sites) {
  std::vector<std::string> list;
  for (Site site : sites) list.push_back(text_of(site));
  return list;
}

std::set<Site> failing_sites(const Verdict& verdict) {
  std::set<Site> sites;
  for (const Judgement& j : verdict.judgements)
    for (const SiteResult& s : j.sites)
      if (s.failing > 0) sites.insert(s.site);
  return sites;
}

// A lane that is fed drops each fault after its site, so that all of a kind can be planted in one run.
void check_found_everywhere(Kind kind, const std::string& more = "",
                            const std::string& text = contract_text(claims_about("step")),
                            Stages stages = qwen3moe.stages) {
  INFO(name_of(kind) << more << text);
  std::set<Site> planted;
  std::vector<std::string> faults;
  for (Stage stage : stages_of(kind, stages))
    for (Site site : sites_of(stage, {0, 1, 3})) {
      if (kind == Kind::transpose && name_of(stage) == "moe_shared_logit") continue;  // of one row
      planted.insert(site);
      faults.push_back(fault_text(kind, site, "step", more));
    }
  REQUIRE_FALSE(planted.empty());
  const Verdict verdict = judge(text, faults);
  CHECK(verdict.failure.empty());
  CHECK(told(failing_sites(verdict)) == told(planted));
}

}  // namespace

TEST_CASE("every fault is found at exactly its site, at every stage it fits, on a lane that is fed") {
  for (const FaultInfo& fault : fault_table) check_found_everywhere(fault.kind);
}

TEST_CASE("every fault is found at exactly its site in an architecture with other stages") {
  // A row of one value has an error to be expected, and none in proportion.
  const std::string text = contract_text(R"(
  - {id: ERROR, claim: c, lane: step, stage: all, metric: noise_ratio, floor: expected, at_most: 10}
  - {id: ROUTING, claim: c, lane: step, stage: moe_router_indices, metric: routing_flips, equals: 0}
)",
                                         "{synthetic: tiny-qwen2moe, seed: 7}");
  for (const FaultInfo& fault : fault_table)
    if (!stages_of(fault.kind, qwen2moe.stages).empty()) check_found_everywhere(fault.kind, "", text, qwen2moe.stages);
}

TEST_CASE("a fault at one position, or of another strength, is found at exactly its site") {
  for (const FaultInfo& fault : fault_table) check_found_everywhere(fault.kind, ", positions: last");
  check_found_everywhere(Kind::nan, ", index: 2");
  check_found_everywhere(Kind::bitflip, ", bit: 31");
  check_found_everywhere(Kind::scale, ", factor: -1");
  check_found_everywhere(Kind::rope_theta, ", theta: 1e5");
  check_found_everywhere(Kind::quantise_activations, ", block: 32");
}

TEST_CASE("every fault is found at exactly its site in lanes of coarser numerics, beside the error they may make") {
  // One rounding to 8 bits is no more than these lanes do themselves, and half of one value is less than all of them.
  // So are sums in bf16.
  const std::set<Kind> within_error = {Kind::quantise_activations, Kind::bitflip, Kind::accumulate};
  for (const std::string numerics : {"bf16", "q8_k"}) {
    std::string text = contract_text(R"(
  - {id: ERROR, claim: c, lane: step, stage: all, metric: noise_ratio, floor: expected, at_most: 8}
  - {id: ROUTING, claim: c, lane: step, stage: moe_router_indices, metric: routing_flips, equals: 0}
)");
    const std::string fed = "numerics: f32, inputs", coarse = "numerics: " + numerics + ", inputs";
    text.replace(text.find(fed), fed.size(), coarse);
    for (const FaultInfo& fault : fault_table)
      if (within_error.count(fault.kind) == 0) check_found_everywhere(fault.kind, "", text);
  }
}

TEST_CASE("every fault is seen first where it stands on a lane that is free") {
  for (const FaultInfo& fault : fault_table)
    for (Stage stage : stages_of(fault.kind))
      for (Site site : sites_of(stage, {0, 3})) {
        const std::string text = fault_text(fault.kind, site, "free");
        INFO(text);
        const Verdict verdict = judge(contract_text(claims_about("free")), {text});
        CHECK(verdict.failure.empty());
        const Judgement* first = verdict.first_divergence();
        REQUIRE(first);
        CHECK(text_of(first->leading_failure()->site) == text_of(site));
      }
}

TEST_CASE("every fault serves as a control, on a lane that is fed and on one that is free") {
  for (const std::string lane : {"step", "free"})
    for (const FaultInfo& fault : fault_table) {
      const Stage stage = stages_of(fault.kind).back();
      const std::string of_lane = fault_text(fault.kind, sites_of(stage, {2}).front(), lane);
      const std::string control = of_lane.substr(0, of_lane.rfind(", lane:")) + "}";
      INFO(lane << " " << control);
      const bool choice = stage == stages::moe_router_indices;
      const std::string text = fmt::format(
          "  - {{id: F, claim: c, lane: {}, stage: {}, controls: [{}]}}\n", lane,
          choice ? "moe_router_indices, metric: routing_flips, equals: 0" : "all, metric: rel_l2, at_most: 1e-5",
          control);
      RunOptions options;
      options.controls = true;
      const Verdict verdict = judge_text(contract_text(text), options);
      CHECK(verdict.judgements.at(0).outcome == Outcome::held);
      REQUIRE(verdict.judgements[0].controls.size() == 1);
      CHECK(verdict.judgements[0].controls[0].tripped);
    }
}

TEST_CASE("a wrong expert is found in every layer") {
  for (int layer = 0; layer < 4; ++layer)
    for (Stage stage : stages_of(Kind::wrong_expert)) {
      const Verdict verdict =
          judge(contract_text(claims_about("step")), {fault_text(Kind::wrong_expert, {stage, layer}, "step")});
      CHECK(told(failing_sites(verdict)) == told({{stage, layer}}));
    }
}

TEST_CASE("without a fault everything holds, whatever the seed") {
  for (int seed = 0; seed < 50; ++seed) {
    const Verdict verdict =
        judge(contract_text(claims_about("step"), fmt::format("{{synthetic: tiny, seed: {}}}", seed),
                            fmt::format("[{}, {}, {}]", seed, seed * 7 % 512, 511 - seed)),
              {});
    INFO("seed " << seed);
    CHECK(verdict.count(Outcome::held) == 2);
    for (const Judgement& j : verdict.judgements) CHECK(j.samples > 0);
  }
}

TEST_CASE("on a free lane a fault is inherited by what follows, and first seen where it stands") {
  const Verdict verdict = judge_text(contract_text(R"(
  - {id: FREE, claim: finite, lane: free, stage: all, metric: nonfinite, equals: 0}
)"),
                                     {}, {"{inject: nan, stage: moe_expert_out, layer: 2, lane: free}"});
  const Judgement* first = verdict.first_divergence();
  REQUIRE(first);
  CHECK(first->leading_failure()->site == Site{stages::moe_expert_out, 2});
  CHECK(first->failing > 10);
  REQUIRE(verdict.tensors.size() == 1);
  CHECK(verdict.tensors[0] == "blk.2.ffn_down_exps.weight (Q6_K)");
}

TEST_CASE("of several faults at one site the computation comes first, and a later step sees an earlier fault") {
  const Verdict both = judge(contract_text(claims_about("free")),
                             {"{inject: nan, stage: moe_expert_gate, layer: 1, index: 4, lane: free}",
                              "{inject: wrong_expert, stage: moe_expert_gate, layer: 1, lane: free}"});
  REQUIRE(both.first_divergence());
  CHECK(std::isnan(both.first_divergence()->leading_failure()->worst.value));
  CHECK(both.failure.empty());
}

TEST_CASE("a fault that makes no difference is told") {
  const std::string text = contract_text(claims_about("step"));
  // Which experts are chosen is not known beforehand: of twelve, one at least is not in a prompt of three tokens.
  int in_vain = 0;
  for (int expert = 0; expert < 12; ++expert) {
    const Verdict verdict =
        judge(text, {fmt::format("{{inject: zero, stage: moe_expert_up, layer: 1, expert: {}, lane: step}}", expert)});
    const bool found = verdict.first_divergence() != nullptr;
    CHECK(found == verdict.failure.empty());
    in_vain += verdict.failure.find("changed nothing") != std::string::npos;
  }
  CHECK(in_vain >= 3);
}

}  // namespace moe_diag
