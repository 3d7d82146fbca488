// SPDX-License-Identifier: MIT
#include <algorithm>
#include <chrono>
#include <string>
#include <vector>

#include "core/conformance/conformance.hpp"
#include "core/conformance/tried_models.hpp"
#include "core/ops/operator.hpp"
#include "core/plugin/host.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/process.hpp"

// The promises of core/api/backend.hpp, asked of the cpu backend in all numerics, and of a backend with one fault each.
namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

std::vector<ConformanceCheck> checks_of(const std::string& path, const ConformanceOptions& options) {
  std::vector<ConformanceCheck> checks;
  check_conformance(path, options, [&](const ConformanceCheck& check) { checks.push_back(check); });
  return checks;
}

std::string cpu_path() { return std::string(MOE_DIAG_PLUGINS) + "/moe_diag_backend_cpu.so"; }
std::string faulty_path() { return std::string(MOE_DIAG_BAD_PLUGINS) + "/faulty_lane/moe_diag_backend_bad.so"; }

std::vector<ConformanceCheck> checks_with(const std::string& fault, const std::string& only = "") {
  return checks_of(faulty_path(), {{{"numerics", "f32"}, {"fault", fault}}, std::chrono::minutes(1), only});
}

const ConformanceCheck& find(const std::vector<ConformanceCheck>& checks, const std::string& promise) {
  const auto check = std::find_if(checks.begin(), checks.end(), [&](const ConformanceCheck& c) {
    return c.promise.find(promise) != std::string::npos;
  });
  REQUIRE(check != checks.end());
  return *check;
}

constexpr std::size_t of_options = 3, of_numerics = 12;

TEST_CASE("the cpu backend keeps every promise, in all numerics") {
  const auto checks = checks_of(cpu_path(), {{}, std::chrono::minutes(1)});
  CHECK(checks.size() == of_options + 4 * of_numerics);
  for (const ConformanceCheck& check : checks) {
    INFO(check.promise << ": " << check.failure << check.not_tried << check.note);
    CHECK(check.failure.empty());
    const bool is_of_spans = check.promise.find("a span of steps") != std::string::npos;
    CHECK(check.not_tried == (is_of_spans ? "it computes each of its steps alone as well" : ""));
    if (check.promise.find("several passes") != std::string::npos || check.promise.find("wanted") != std::string::npos)
      CHECK_THAT(check.note, Contains("the same bytes"));
  }
  CHECK_THAT(find(checks, "q8_k: it opens").note, Contains("does not multiply"));
  CHECK(find(checks, "f32: it opens").note.empty());
}

TEST_CASE("backends are tried with every operator, every architecture and every type of weights") {
  std::vector<BlockType> types;
  std::vector<Op> operators;
  std::size_t whole = 0;
  for (const TriedModel& model : tried_models()) {
    CHECK_FALSE(model.steps.empty());
    whole += model.is_whole;
    for (const std::size_t step : model.steps) {
      operators.push_back(model.program[step].op);
      for (const Weight* weight : model.program[step].weights) types.push_back(weight->type);
    }
  }
  CHECK(whole == architectures().size() + 2);  // and one for each size of blocks
  for (const BlockInfo& block : block_table) {
    INFO(block.name);
    CHECK(std::count(types.begin(), types.end(), block.type) > 0);
  }
  for (int op = 0; op <= static_cast<int>(Op::sigmoid_gate); ++op) {
    INFO(operator_of(static_cast<Op>(op)).name);
    CHECK(std::count(operators.begin(), operators.end(), static_cast<Op>(op)) > 0);
  }
}

TEST_CASE("a backend that breaks a promise is told which, where, and what was expected") {
  struct Breach {
    const char* fault;
    const char* promise;
    const char* failure;
  };
  constexpr auto steps = "a step errs by at most", passes = "in several passes";
  for (const Breach& breach : {
           Breach{"small_rows", steps, "1 row, random inputs: position 0, value 0 of "},
           Breach{"off_by_one", steps, "expert_linear (F32, moe_expert_gate), qwen2moe, F32, 1 row, random inputs"},
           Breach{"idle_expert", steps, "33 rows, random inputs, all rows of the same experts: position 0, value 0 of"},
           Breach{"unwritten", steps, "found nan; relative error inf"},
           Breach{"unwritten", steps, "the step leaves values unwritten"},
           Breach{"wrong_type", steps, "Q6_K, 1 row, random inputs: position 0, value "},
           Breach{"tied_topk", steps, "topk (moe_router_indices), qwen2moe, F32, "},
           Breach{"nan_leaks", "a NaN or an infinity stays", "3 rows, nan in position 1 of embedding: position 0"},
           Breach{"nan_lost", "a NaN or an infinity stays", "position 1, value 5 of 111: expected nan, found "},
           Breach{"tiny_lost", "on large, tiny", "tiny inputs: position 0, value "},
           Breach{"unrepeatable", "give the same bytes", "softmax (attn_softmax), "},
           Breach{"stale_cache", passes, "mix (attention), qwen2moe, F32, 1 row from position 16, in a pass: position"},
           Breach{"mixes_sequences", "sequences do not mix", "scores (attn_scores), "},
           Breach{"forgets_rewind", "sequences do not mix", "rewound to position 8: scores (attn_scores), "},
           Breach{"refuses_rewind", "sequences do not mix", "5 rows from position 8): cannot go back"},
           Breach{"long_pass", "a pass of any length", "7 rows behind passes of other lengths"},
           Breach{"reads_unwanted", "what is wanted changes no result", "the last output alone wanted, beside every"},
           Breach{"write_lost", "a stage that was written", "rows 0 to 6 were written as bf16: position 0, value 0"},
           Breach{"rows_lost", "a stage that was written", "rows 2 to 4 were written as f32: position 2, value 0"},
           Breach{"cache_lost", "a cache is shown", "keys after positions 2 to 4 were written: position 2, value 0"},
           Breach{"supports_changes", "it opens what it describes", "supports: said "},
           Breach{"crashes", steps, "run (qwen2moe, F32, 1 row: swiglu (moe_expert_swiglu)): the process died: Abort"},
           Breach{"throws", steps, "rope (q_post_rope)): threw something that is not an exception"},
           Breach{"options_unread", "it reads the options", "lists the option 'threads' and does not read it"},
           Breach{"options_unknown", "an unknown option", "wanted an Error of kind usage, found none"},
           Breach{"refuses_all", "it opens what it describes", "it refuses every model: "},
       }) {
    INFO(breach.fault);
    const auto checks = checks_with(breach.fault, breach.promise);
    CHECK_THAT(find(checks, breach.promise).failure, Contains(breach.failure));
  }
}

TEST_CASE("a backend with no fault keeps all, and what it cannot do is not tried") {
  for (const char* fault : {"nothing", "only_products", "fused"}) {
    for (const ConformanceCheck& check : checks_with(fault)) {
      INFO(fault << ": " << check.promise);
      CHECK(check.failure == "");
    }
  }
  CHECK_THAT(find(checks_with("refuses_q6_k", "it opens"), "it opens").note, Contains("qwen3moe, Q6_K;"));
  CHECK_THAT(find(checks_with("nothing", "it opens"), "it opens").note, !Contains("qwen3moe, Q6_K;"));
  CHECK(find(checks_with("no_caches", "a cache is shown"), "a cache is shown").not_tried ==
        "it says that it does not show its caches");
  CHECK(find(checks_with("no_rewind", "sequences"), "sequences").note == "it says that it does not rewind");
  CHECK_THAT(find(checks_with("only_products", "it opens"), "it opens").note,
             Contains("left to the plain operators: embed, rms_norm"));
  CHECK_THAT(
      find(checks_with("fused_wrong", "a span of steps"), "a span of steps").failure,
      Contains("expert_linear (F32, moe_expert_gate) to combine (moe_ffn_out), qwen2moe, F32, 1 row: position 0"));
}

TEST_CASE("a call of a lane that does not return is broken off, with its step") {
  const auto checks = checks_of(faulty_path(), {{{"numerics", "f32"}, {"fault", "hangs"}}, std::chrono::seconds(5)});
  REQUIRE(checks.size() == of_options + of_numerics);
  const auto hung = std::find_if(checks.begin(), checks.end(), [](const auto& c) { return !c.failure.empty(); });
  REQUIRE(hung != checks.end());
  CHECK_THAT(hung->failure, Contains("had not returned after 5 s") && Contains("run (qwen2moe, F32, "));
  for (auto check = hung + 1; check != checks.end(); ++check) CHECK(check->not_tried == "a call did not return");
}

TEST_CASE("the command tries backends, and numerics that the user names") {
  const Finished wrong = run_tool("plugins --conformance " + quoted(faulty_path()) +
                                  " --option fault=small_rows "
                                  "--option numerics=f64");
  CHECK(wrong.code == 1);
  CHECK_THAT(wrong.out,
             Contains("BROKEN  f64: a step errs by at most 10 times its predicted rounding, 1 to 257 rows\n"));
  CHECK_THAT(wrong.out, !Contains("f32: "));
  CHECK_THAT(wrong.out, Contains("30 times the predicted rounding of f64"));
}

}  // namespace
}  // namespace moe_diag
