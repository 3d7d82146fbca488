// SPDX-License-Identifier: MIT
// What looking and explaining cost, on four layers of the full width of Qwen3-30B-A3B, 32 tokens, an f64 lane and one
// more. The counters are ratios of processor time within one run.
#include <benchmark/benchmark.h>
#include <fmt/format.h>

#include <cstdint>
#include <ctime>
#include <optional>
#include <string>

#include "core/contract/contract.hpp"
#include "core/plugin/host.hpp"
#include "core/run/run.hpp"

namespace moe_diag {
namespace {

// What is run beside one prompt, one pass and an f32 lane.
struct Setting {
  int prompts = 1, chunk = 0;
  std::string numerics = "f32";
  std::optional<std::uint64_t> memory = std::nullopt;  // see RunOptions::explain_memory
};

std::string contract_text(const std::string& falsifiers, const Setting& setting) {
  std::string all;
  for (int p = 0; p < setting.prompts; ++p) {
    std::string tokens;
    for (int i = 0; i < 32; ++i) tokens += fmt::format("{}{}", i > 0 ? ", " : "", (i + p * 32) * 7919 % 151936);
    const std::string chunk = setting.chunk > 0 ? fmt::format(", chunk: {}", setting.chunk) : "";
    all += fmt::format("  - {{id: p{}, tokens: [{}]{}}}\n", p, tokens, chunk);
  }
  return fmt::format(R"(
metadata: {{id: cost, version: 1.0.0, description: what looking and explaining cost}}
model: {{synthetic: qwen3-30b-a3b, layers: 4, seed: 7}}
prompts:
{}oracle: truth
lanes:
  truth: {{backend: cpu, numerics: f64}}
  free: {{backend: cpu, numerics: {}}}
falsifiers:
{})",
                     all, setting.numerics, falsifiers);
}

// Processor time of all threads, in seconds, of one run without what it takes to make the model.
double seconds_of(const std::string& falsifiers, const std::string& fault, bool explain, const Setting& setting = {}) {
  static ModelCache models;
  const Contract contract = parse_contract(contract_text(falsifiers, setting), "cost.yaml");
  PluginHost host({MOE_DIAG_PLUGINS});
  RunOptions options;
  options.models = &models;
  options.explain = explain;
  options.explain_memory = setting.memory;
  if (!fault.empty()) options.inject.push_back(parse_fault("{" + fault + ", lane: free}", contract));
  if (!models.model) run_contract(contract, host, options);
  const std::clock_t before = std::clock();
  const Verdict verdict = run_contract(contract, host, options);
  benchmark::DoNotOptimize(verdict.judgements.size());
  return static_cast<double>(std::clock() - before) / CLOCKS_PER_SEC;
}

const std::string logits =
    "  - {id: OUT, claim: c, lane: free, stage: lm_head, positions: last, metric: rel_l2, at_most: 1e-4}\n";
const std::string layers =
    "  - {id: LAYERS, claim: c, lane: free, stage: moe_ffn_out, metric: rel_l2, at_most: 1e-4}\n";
const std::string everything =
    "  - {id: ALL, claim: c, lane: free, stage: all, metric: rel_l2, at_most: 1}\n"
    "  - {id: FINITE, claim: c, lane: free, stage: all, metric: nonfinite, equals: 0}\n";

// Every stage of every position is compared, beside a run that compares all logits and nothing else.
void looking(benchmark::State& state) {
  const std::string all_logits = "  - {id: OUT, claim: c, lane: free, stage: lm_head, metric: rel_l2, at_most: 1}\n";
  double with = 0, without = 0;
  for (auto _ : state) {
    without += seconds_of(all_logits, "", false);
    with += seconds_of(everything, "", false);
  }
  state.counters["looking/run"] = with / without - 1;
}
BENCHMARK(looking)->Unit(benchmark::kMillisecond)->Iterations(3);

void explaining(benchmark::State& state, const std::string& falsifiers, const std::string& fault,
                const Setting& setting = {}) {
  double with = 0, without = 0;
  for (auto _ : state) {
    without += seconds_of(falsifiers, fault, false, setting);
    with += seconds_of(falsifiers, fault, true, setting);
  }
  state.counters["explaining/run"] = with / without - 1;
}
void few(benchmark::internal::Benchmark* b) { b->Unit(benchmark::kMillisecond)->Iterations(3); }
BENCHMARK_CAPTURE(explaining, scale, layers + logits, "inject: scale, stage: moe_expert_out, layer: 1")->Apply(few);
BENCHMARK_CAPTURE(explaining, nan, layers + logits, "inject: nan, stage: moe_expert_out, layer: 1")->Apply(few);
BENCHMARK_CAPTURE(explaining, wrong_type, layers + logits, "inject: wrong_type, stage: moe_expert_out, layer: 1")
    ->Apply(few);
BENCHMARK_CAPTURE(explaining, early, layers + logits, "inject: scale, stage: embedding")->Apply(few);
BENCHMARK_CAPTURE(explaining, head, logits, "inject: scale, stage: lm_head")->Apply(few);
BENCHMARK_CAPTURE(explaining, middle_position, layers + logits,
                  "inject: scale, stage: ffn_norm, layer: 2, positions: 20")
    ->Apply(few);
BENCHMARK_CAPTURE(explaining, last_logits_of_early_position, logits,
                  "inject: scale, stage: k_post_rope, layer: 1, positions: 3")
    ->Apply(few);
BENCHMARK_CAPTURE(explaining, late_position, layers + logits,
                  "inject: scale, stage: ffn_norm, layer: 2, positions: last")
    ->Apply(few);

// No step is wrong: every claim of this kind is too strict for f32.
const std::string strict = "  - {id: DRIFT, claim: c, lane: free, metric: rel_l2, at_most: 1e-9, ";
BENCHMARK_CAPTURE(explaining, drift, strict + "stage: moe_ffn_out}\n", "")->Apply(few);
const std::string late_drift = strict + "stage: lm_head, positions: last}\n";
BENCHMARK_CAPTURE(explaining, late_drift, late_drift, "")->Apply(few);
BENCHMARK_CAPTURE(explaining, late_drift_of_prompts, late_drift, "", Setting{.prompts = 3})->Apply(few);
BENCHMARK_CAPTURE(explaining, late_drift_of_chunks, late_drift, "", Setting{.chunk = 8})->Apply(few);
BENCHMARK_CAPTURE(explaining, late_drift_of_bf16, late_drift, "", Setting{.numerics = "bf16"})->Apply(few);
BENCHMARK_CAPTURE(explaining, late_drift_of_q8_k, late_drift, "", Setting{.numerics = "q8_k"})->Apply(few);

// Nothing that the oracle computed is kept, as in a run that is too long for the memory.
BENCHMARK_CAPTURE(explaining, late_position_oracle_not_kept, layers + logits,
                  "inject: scale, stage: ffn_norm, layer: 2, positions: last", Setting{.memory = 0})
    ->Apply(few);
BENCHMARK_CAPTURE(explaining, late_drift_oracle_not_kept, late_drift, "", Setting{.memory = 0})->Apply(few);

// What keeping costs where nothing fails.
void keeping(benchmark::State& state) {
  double with = 0, without = 0;
  for (auto _ : state) {
    without += seconds_of(logits, "", false);
    with += seconds_of(logits, "", true);
  }
  state.counters["keeping/run"] = with / without - 1;
}
BENCHMARK(keeping)->Unit(benchmark::kMillisecond)->Iterations(3);

}  // namespace
}  // namespace moe_diag
