// SPDX-License-Identifier: MIT
// The author of a fused MoE kernel, who has the files of the cases and nothing else.
#include <filesystem>
#include <limits>
#include <string>

#include "tests/support/catch.hpp"
#include "tests/support/kernel_cases.hpp"
#include "tests/support/own_kernel.hpp"
#include "tests/support/process.hpp"

namespace moe_diag::test {
TEST_CASE("a right kernel holds in its numerics, whatever type it writes") {
  for (const std::string numerics : {"f32", "bf16", "q8_k", "q8_1"}) {
    const Cases cases(numerics, {1, 7, 16}, "moe_ffn", {});
    for (const DType dtype : {DType::f32, DType::f64, DType::bf16, DType::f16}) {
      run_own_kernel(cases.folder(), {}, dtype);
      const JudgedKernel judged = cases.judged();
      INFO(numerics << " " << name_of(dtype) << "\n" << judge_report(judged, "cases"));
      CHECK(judged.cases.size() == 9);
      CHECK(judged.count(CaseOutcome::held) == 9);
      for (const JudgedCase& c : judged.cases) CHECK(c.worst()->ratio() < 0.5);
    }
  }
}

TEST_CASE("cases whose kernel has written nothing are untested") {
  const Cases cases("f32", {1, 7});
  CHECK(holds(cases.told, "2 cases, of 1 layer"));
  CHECK(cases.judged().count(CaseOutcome::untested) == 2);
  CHECK(holds(cases.report(), "there is no layer_01_rows_7/out.safetensors: the kernel's test writes it"));
}

TEST_CASE("expert ids that are off by one are named") {
  const Cases cases("f32", {1, 7, 16, 64}, "moe_ffn", {});
  run_own_kernel(cases.folder(), {.expert = [](int id, int) { return (id + 1) % 12; }});
  const JudgedKernel judged = cases.judged();
  INFO(judge_report(judged, "cases"));
  CHECK(judged.count(CaseOutcome::falsified) == 12);
  for (const JudgedCase& c : judged.cases)
    CHECK(c.cause == "expert e is computed with the weights of expert (e + 1) mod 12");
  CHECK(judged.row_counts.empty());
}

TEST_CASE("a kernel that is wrong only for few rows is told by its numbers of rows") {
  const Cases cases;
  run_own_kernel(cases.folder(),
                 {.expert = [](int id, int) { return (id + 1) % 12; }, .applies = [](int rows) { return rows < 16; }});
  const JudgedKernel judged = cases.judged();
  INFO(judge_report(judged, "cases"));
  CHECK(judged.count(CaseOutcome::held) == 2);
  REQUIRE(judged.row_counts.size() == 1);
  CHECK(judged.row_counts[0] ==
        "layer 1, routing model: wrong only below 16 rows (wrong at 1 and 7, right at 16 and 64)");
}

TEST_CASE("a NaN is found, and is never small") {
  const Cases cases;
  run_own_kernel(cases.folder(), {.after = [](int rows, std::vector<float>& out) {
                   if (rows == 16) out[5 * 256 + 17] = std::numeric_limits<float>::quiet_NaN();
                 }});
  const JudgedKernel judged = cases.judged();
  const JudgedCase& c = case_of(judged, 16);
  CHECK(judged.count(CaseOutcome::held) == 3);
  CHECK(c.footprint.rows == std::vector<int>{5});
  CHECK(c.cause == "nonfinite_origin: the inputs are finite, the output is not");
  CHECK(holds(cases.report(), "1 value not finite, the first at row 5, column 17"));
}

TEST_CASE("columns that are left at zero are named") {
  const Cases cases("bf16");
  run_own_kernel(cases.folder(), {.after = [](int rows, std::vector<float>& out) {
                   for (int row = 0; row < rows; ++row) std::fill_n(out.begin() + row * 256 + 128, 128, 0.0f);
                 }});
  const JudgedKernel judged = cases.judged();
  INFO(judge_report(judged, "cases"));
  CHECK(judged.count(CaseOutcome::falsified) == 4);
  CHECK(case_of(judged, 64).footprint.columns == std::vector<Range>{{128, 255}});
  CHECK(case_of(judged, 64).footprint.only_zeros);
  CHECK(case_of(judged, 64).cause.empty());
  CHECK(holds(cases.report(), "columns 128 to 255 of 256, where 0 was written"));
}

TEST_CASE("other mistakes of a fused MoE have their names") {
  const Cases cases("f32", {7, 16}, "moe_ffn", {});
  const std::vector<std::pair<std::string, OwnMistakes>> all{
      {"in moe_expert_swiglu, gate and up changed places", {.swaps = true}},
      {"in moe_expert_weighted, not multiplied by the router's weights",
       {.weight = [](float, int, int) { return 1.0f; }}},
      {"in moe_expert_weighted, all experts weigh 1/3", {.weight = [](float, int, int) { return 1 / 3.0f; }}},
      {"the router's weights are applied twice", {.weight = [](float w, int, int) { return w * w; }}},
      {"slot j is computed with the weights of expert j", {.expert = [](int, int slot) { return slot; }}},
      {"expert e is computed with the weights of expert (e - 1) mod 12",
       {.expert = [](int id, int) { return (id + 11) % 12; }}},
      {"in moe_ffn_out, the expert of slot 2 is not added",
       {.weight = [](float w, int, int slot) { return slot == 2 ? 0.0f : w; }}},
      {"all values are multiplied by 2",
       {.after =
            [](int, std::vector<float>& out) {
              for (float& v : out) v *= 2;
            }}},
      {"only zeros were written",
       {.after = [](int, std::vector<float>& out) { std::fill(out.begin(), out.end(), 0.0f); }}},
      {"row r holds what belongs to row (r + 1) mod 16",
       {.after = [](int, std::vector<float>& out) { std::rotate(out.begin(), out.begin() + 256, out.end()); }}},
  };
  for (const auto& [cause, mistakes] : all) {
    run_own_kernel(cases.folder(), mistakes);
    const JudgedKernel judged = cases.judged();
    INFO(judge_report(judged, "cases"));
    CHECK(holds(case_of(judged, 16).cause, cause));
  }
}

TEST_CASE("an expert that is wrong is named where its rows, and no others, are wrong") {
  const Cases cases;
  run_own_kernel(cases.folder(), {.weight = [](float w, int id, int) { return id == 5 ? 0.0f : w; }});
  const JudgedKernel judged = cases.judged();
  INFO(judge_report(judged, "cases"));
  const JudgedCase& c = case_of(judged, 64);
  CHECK(c.footprint.experts == std::vector<int>{5});
  CHECK(holds(c.cause, "expert 5 is not added"));
}

TEST_CASE("a mistake that nobody knows has no cause") {
  const Cases cases("f32", {16});
  run_own_kernel(cases.folder(), {.after = [](int, std::vector<float>& out) {
                   for (std::size_t i = 0; i < out.size(); ++i) out[i] += 0.5f * out[(i * 7 + 3) % out.size()];
                 }});
  const JudgedKernel judged = cases.judged();
  CHECK(judged.cases[0].cause.empty());
  CHECK(holds(cases.report(), "cause      not known: no mistake that was tried explains all that fails"));
}

TEST_CASE("without the model there is a verdict, and no cause") {
  const TemporaryFolder folder;
  const std::string model = folder / "tiny.gguf", cases = folder / "cases";
  REQUIRE(run_tool("synth " + quoted(model) + " --layers 2").code == 0);
  REQUIRE(run_tool("cases " + quoted(model) + " --span moe_ffn --layers -1 --rows 3 --out " + quoted(cases)).code == 0);
  CHECK(run_tool("judge " + quoted(cases)).code == 3);
  run_own_kernel(cases, {.expert = [](int id, int) { return (id + 1) % 12; }});
  const Finished with = run_tool("judge " + quoted(cases));
  CHECK(with.code == 1);
  CHECK(holds(with.out, "cause      expert e is computed with the weights of expert (e + 1) mod 12"));
  std::filesystem::rename(model, folder / "moved.gguf");
  const Finished without = run_tool("judge " + quoted(cases));
  CHECK(without.code == 1);
  CHECK(holds(without.out, "no cause was looked for: the model cannot be opened"));
  CHECK(holds(run_tool("judge " + quoted(cases) + " --model " + quoted(folder / "moved.gguf")).out, "(e + 1) mod 12"));
  REQUIRE(run_tool("synth " + quoted(model) + " --layers 2 --seed 9").code == 0);
  CHECK(holds(run_tool("judge " + quoted(cases)).out, "is another model: expected digest"));
  run_own_kernel(cases);
  CHECK(run_tool("judge " + quoted(cases)).code == 0);
}

}  // namespace moe_diag::test
