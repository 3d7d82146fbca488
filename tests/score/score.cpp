// SPDX-License-Identifier: MIT
// How often a report is right: every fault at every site it fits, in lanes that are fed by the oracle and in lanes that
// are free, and runs without a fault. Prints a table in Markdown; exits 1 when the report was wrong too often.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdint>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "core/plan/plan.hpp"
#include "core/run/run.hpp"
#include "core/verdict/controls.hpp"
#include "tests/score/cases.hpp"
#include "tests/score/engines.hpp"
#include "tests/score/movement.hpp"

namespace moe_diag::score {
namespace {

constexpr double counts_from = 10;  // expected errors that a fault must move its site by
constexpr double coarse_from = 20;  // the same in lanes that stand for an engine with coarser types
constexpr double least_right = 0.95;
constexpr double least_found = 0.99;     // in such lanes: two experts may be equal in their type
constexpr int most_between_unknown = 3;  // they are quickly tried: a sample has every third

struct Settings {
  std::string preset = "tiny";
  int seeds = 3;
  int every = 1;
  int clean = 200;
  std::vector<std::string> numerics = {"f32"};
  bool list = false;
  std::vector<std::string> faults;  // kinds; empty: all
  bool unknown = false;
  bool planted = false;
};

// A lane, and what is claimed of it: what any correct lane of its numerics keeps. `numerics` is what its contract says
// behind that key, with the keys of an engine: "f32, stored: hf".
struct Judged {
  std::string lane, numerics, claims;
};

bool is_engine(const std::string& numerics) { return numerics.find(':') != std::string::npos; }

// In coarse types logits are equal now and then.
std::vector<Judged> judged_lanes(const std::string& numerics) {
  std::vector<Judged> lanes = {
      {"step", numerics,
       fmt::format(R"(
  - {{id: ERROR, claim: steps are right, lane: step, stage: all, metric: noise_ratio, floor: expected, at_most: {}}}
  - {{id: ROUTING, claim: routing is right, lane: step, stage: moe_router_indices, metric: {}, equals: 0}}
)",
                   is_engine(numerics) ? 10 : 8, is_engine(numerics) ? "routing_real_flips" : "routing_flips")}};
  // A free lane of coarse numerics drifts so far that faults of a few values are within it.
  if (numerics == "f32")
    lanes.push_back({"free", numerics, R"(
  - id: ERROR
    claim: values are right, those less that hang on the router's probabilities, which magnify what its logits are off by
    lane: free
    stage: all
    metric: rel_l2
    at_most: 1e-5
    per_stage: [{stage: [moe_router_probs, moe_router_weights, moe_expert_weighted], at_most: 1e-4}]
  - {id: ROUTING, claim: routing is right, lane: free, stage: moe_router_indices, metric: routing_real_flips, equals: 0}
)"});
  return lanes;
}

Contract contract_of(const std::string& preset, std::uint64_t seed, const std::vector<std::int32_t>& tokens,
                     const Judged& judged) {
  const std::string text =
      fmt::format(R"(
metadata: {{id: score, version: 1.0.0, description: one fault or none, references: []}}
model: {{synthetic: {}, seed: {}}}
prompts: [{{id: p, tokens: [{}]}}]
oracle: truth
lanes:
  truth: {{backend: cpu, numerics: f64}}
  free: {{backend: cpu, numerics: {}}}
  step: {{backend: cpu, numerics: {}, inputs: truth}}
falsifiers:{})",
                  preset, seed, fmt::join(tokens, ", "), judged.numerics, judged.numerics, judged.claims);
  return parse_contract(text, "score.yaml");
}

// Judges runs of synthetic models, each of which is made once for those that follow one another.
class Runs {
 public:
  explicit Runs(std::string preset) : preset_(std::move(preset)) {}

  // Points into a contract that lives until the next call.
  Verdict judge(std::uint64_t seed, const std::vector<std::int32_t>& tokens, const Judged& judged,
                const std::string& fault = "") {
    contract_ = contract_of(preset_, seed, tokens, judged);
    RunOptions options;
    options.models = &models_;
    if (!fault.empty()) options.inject.push_back(parse_fault(fault, contract_));
    return run_contract(contract_, host_, options);
  }

 private:
  const std::string preset_;
  PluginHost host_{{MOE_DIAG_PLUGINS}};
  ModelCache models_;
  Contract contract_;
};

std::vector<std::int32_t> tokens_of(std::uint64_t seed, int count) {
  std::mt19937_64 random(seed);
  std::vector<std::int32_t> tokens;
  for (int i = 0; i < count; ++i) tokens.push_back(static_cast<std::int32_t>(random() % 512));
  return tokens;
}

// Of one kind of fault in one lane.
struct Score {
  int planted = 0, counted = 0, found = 0, right = 0, plain = 0, wrong = 0;

  void add(const Score& other) {
    planted += other.planted;
    counted += other.counted;
    found += other.found;
    right += other.right;
    plain += other.plain;
    wrong += other.wrong;
  }
};

class Scorer {
 public:
  explicit Scorer(const Settings& settings) : settings_(settings), runs_(settings.preset) {}

  void score_faults() {
    for (const std::string& numerics : settings_.numerics)
      for (int seed = 0; seed < settings_.seeds; ++seed) score_model(numerics, static_cast<std::uint64_t>(seed));
  }

  // Over seeds, lengths and numerics, both kinds of lanes.
  void score_clean_runs() {
    const std::vector<std::string> numerics = {"f32",
                                               "bf16",
                                               "q8_k",
                                               "f32, stored: hf",
                                               "f32, stored: vllm, kv_cache: f16",
                                               "f32, stored: f16, reads: q8_0",
                                               "f32, kv_cache: q8_0"};
    for (int i = 0; i < settings_.clean; ++i) {
      const auto seed = static_cast<std::uint64_t>(i);
      for (const Judged& judged : judged_lanes(numerics[static_cast<std::size_t>(i) % numerics.size()])) {
        ++clean_runs_;
        const Verdict verdict = runs_.judge(seed, tokens_of(seed, 1 + i % 17), judged);
        if (verdict.failure.empty() &&
            verdict.count(Outcome::held) == static_cast<std::int64_t>(verdict.judgements.size()))
          continue;
        ++alarms_;
        fmt::print("false alarm: seed {}, lane {} {}\n", seed, judged.lane, judged.numerics);
      }
    }
  }

  // A table a lane.
  void print() const {
    std::string lane;
    for (const auto& [key, score] : rows_) {
      if (key.first != lane) print_head(lane = key.first);
      print(fmt::format("`{}`", name_of(key.second)), score);
    }
    print_head("All of them");
    print("all", total());
    fmt::print("\nRuns without a fault: {}, false alarms: {}\n", clean_runs_, alarms_);
  }

  // In lanes that stand for an engine a cause may be hidden by its rounding, and is not asked for.
  bool good() const {
    Score exact, coarse;
    for (const auto& [key, score] : rows_) (is_engine(key.first) ? coarse : exact).add(score);
    const bool found = exact.found == exact.counted && coarse.found >= least_found * coarse.counted;
    return total().counted > 0 && found && exact.right >= least_right * exact.counted && total().wrong == 0 &&
           alarms_ == 0;
  }

 private:
  // By lane ("Lane `step`, f32") and kind.
  using Rows = std::map<std::pair<std::string, FaultSpec::Kind>, Score>;

  static void print_head(const std::string& what) {
    fmt::print("\n{}:\n\n", what);
    fmt::print("| fault | planted | counted | found at its site | cause right | `operator` | cause wrong |\n");
    fmt::print("|---|---:|---:|---:|---:|---:|---:|\n");
  }

  static void print(const std::string& fault, const Score& s) {
    fmt::print("| {} | {} | {} | {} | {} | {} | {} |\n", fault, s.planted, s.counted, s.found, s.right, s.plain,
               s.wrong);
  }

  Score total() const {
    Score all;
    for (const auto& [key, score] : rows_) all.add(score);
    return all;
  }

  void score_model(const std::string& numerics, std::uint64_t seed) {
    SyntheticSpec spec;
    spec.preset = settings_.preset;
    spec.seed = seed;
    const std::vector<std::int32_t> tokens = tokens_of(seed, 5);
    Movement movement(spec, numerics, tokens);
    const std::vector<Judged> lanes = judged_lanes(numerics);
    const Contract contract = contract_of(settings_.preset, seed, tokens, lanes[0]);
    const Program program = build_program(movement.model());
    for (const Planting& planting : all_plantings(movement.model())) {
      if (!is_asked_for(planting) || drawn_++ % settings_.every != 0) continue;
      const FaultSpec fault = parse_fault(planting.text("step"), contract);
      if (!mistake_of(fault, contract, movement.model().config(), program).empty()) continue;
      for (const Judged& judged : lanes)
        score_fault(planting, judged, seed, tokens, movement.of(parse_fault(planting.text(judged.lane), contract)));
    }
  }

  bool is_asked_for(const Planting& planting) const {
    const std::vector<std::string>& kinds = settings_.faults;
    return kinds.empty() || std::find(kinds.begin(), kinds.end(), name_of(planting.kind)) != kinds.end();
  }

  void score_fault(const Planting& planting, const Judged& judged, std::uint64_t seed,
                   const std::vector<std::int32_t>& tokens, double moved) {
    Score& score = rows_[{fmt::format("Lane `{}`, {}", judged.lane, judged.numerics), planting.kind}];
    ++score.planted;
    const std::string fault = planting.text(judged.lane);
    const auto tell = [&](const std::string& what) {
      if (settings_.list) fmt::print("seed {}, {} {}, {}: {}\n", seed, judged.lane, judged.numerics, fault, what);
    };
    if (!(moved >= (is_engine(judged.numerics) ? coarse_from : counts_from))) {
      tell(fmt::format("not counted, it moves its site by {:.3g} expected errors", moved));
      return;
    }
    ++score.counted;
    const Verdict verdict = runs_.judge(seed, tokens, judged, fault);
    const std::vector<Divergence>& seen = verdict.diagnosis.divergences;
    const bool elsewhere =
        std::any_of(seen.begin(), seen.end(), [&](const Divergence& d) { return d.site != planting.site; });
    if (seen.empty() || elsewhere) {
      tell(fmt::format("NOT FOUND: {}", seen.empty() ? "nothing is" : text_of(seen[0].site)));
      return;
    }
    ++score.found;
    const std::string_view cause = name_of(seen[0].cause);
    if (is_right_cause(cause, planting.kind, planting.site.stage)) {
      ++score.right;
      return;
    }
    const bool plain = seen[0].cause == Cause::plain_operator;
    ++(plain ? score.plain : score.wrong);
    tell(fmt::format("{}: {} {}", plain ? "merely" : "WRONG", cause, seen[0].text));
  }

  const Settings settings_;
  Runs runs_;
  Rows rows_;
  int drawn_ = 0;
  int clean_runs_ = 0, alarms_ = 0;
};

}  // namespace

int run(int argc, char** argv) {
  CLI::App app("How often a report is right about planted faults and about runs without one", "score");
  Settings settings;
  app.add_option("--preset", settings.preset, "the synthetic model")->capture_default_str();
  app.add_option("--seeds", settings.seeds, "models that faults are planted in")->capture_default_str();
  app.add_option("--every", settings.every, "plant only every so manyth fault: a sample")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  app.add_option("--clean", settings.clean, "models run without a fault")->capture_default_str();
  app.add_option("--numerics", settings.numerics, "of the lanes that faults are planted in")->capture_default_str();
  app.add_flag("--list", settings.list, "name each fault that is not counted, or whose cause is not named");
  app.add_flag("--unknown", settings.unknown, "only mistakes of engines, those that no cause is known for among them");
  app.add_option("--faults", settings.faults, "plant only these kinds")->check(CLI::IsMember(fault_names()));
  app.add_flag("--planted", settings.planted, "no mistakes of engines, only planted faults and runs without one");
  CLI11_PARSE(app, argc, argv);
  if (settings.unknown) {
    settings.clean = 0;
    settings.numerics.clear();
  }
  Scorer scorer(settings);
  scorer.score_faults();
  scorer.score_clean_runs();
  if (!settings.unknown) scorer.print();
  if (settings.planted) return scorer.good() ? 0 : 1;
  EngineFaults engines;
  engines.score(settings.seeds, std::min(settings.every, most_between_unknown), settings.list);
  engines.print();
  return (settings.unknown || scorer.good()) && engines.good() ? 0 : 1;
}

}  // namespace moe_diag::score

int main(int argc, char** argv) {
  try {
    return moe_diag::score::run(argc, argv);
  } catch (const std::exception& e) {
    fmt::print(stderr, "{}\n", e.what());
    return 2;
  }
}
