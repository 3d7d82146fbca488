// SPDX-License-Identifier: MIT
// What `judge` refuses, of the kernel's files and of the cases' own; and the causes of one step.
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>

#include "core/api/error.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/kernel_cases.hpp"
#include "tests/support/own_kernel.hpp"
#include "tests/support/process.hpp"

namespace moe_diag::test {
namespace {

std::vector<float> expected_of(const Cases& cases, const std::string& name) {
  const OwnFile file(cases.path(name + "/expected.safetensors"));
  return floats_of(file.tensor(read_index(cases.folder()).output));
}

// Why the only case is refused.
std::string refusal(const Cases& cases) {
  const JudgedKernel judged = cases.judged();
  CHECK(judged.cases[0].outcome == CaseOutcome::refused);
  return judged.cases[0].why;
}

std::string index_refusal(const Cases& cases, const std::string& text) {
  write_text(cases.path("case.json"), text);
  try {
    cases.judged();
  } catch (const Error& e) {
    CHECK(e.kind() == ErrorKind::usage);
    return e.what();
  }
  return "";
}

}  // namespace

TEST_CASE("what a kernel wrote under another name, shape or type is refused, with the remedy") {
  const Cases cases("f32", {2});
  const std::string path = cases.path("layer_01_rows_2/out.safetensors");
  const std::vector<float> right = expected_of(cases, "layer_01_rows_2");
  write_out(path, out_of("out", right, Shape{2, 256}));
  CHECK(refusal(cases) == path +
                              ": expected a tensor named moe_ffn_out, found out; write the kernel's output under the "
                              "name of its stage, a row for each row of the inputs");
  write_out(path, out_of("moe_ffn_out", {right.begin(), right.begin() + 256}, Shape{1, 256}));
  CHECK(
      holds(refusal(cases), "tensor moe_ffn_out: expected shape [2, 256], found [1, 256]; write the kernel's output"));
  write_out(path, out_of("moe_ffn_out", right, Shape{256, 2}));
  CHECK(holds(refusal(cases), "expected shape [2, 256], found [256, 2]"));
  write_out(path, {"moe_ffn_out", DType::i32, Shape{2, 256}, std::vector<std::byte>(2048)});
  CHECK(holds(refusal(cases), "tensor moe_ffn_out: expected F64, F32, F16 or BF16, found I32"));
  write_text(path, "nonsense");
  CHECK(holds(refusal(cases), "no safetensors file; write it with a safetensors library, whole"));
  write_text(path, "");
  CHECK(holds(refusal(cases), "it has 0 bytes"));
  std::filesystem::remove(path);
  std::filesystem::create_directory(path);
  CHECK(holds(refusal(cases), "it is a folder"));
  CHECK(holds(cases.report(), "REFUSED: moe_ffn in f32: 0 held, 0 falsified, 0 untested, 1 refused"));
  CHECK(run_tool("judge " + quoted(cases.folder())).code == 2);
}

TEST_CASE("cases whose own files are missing, cut or changed are refused, with the remedy") {
  const Cases cases("f32", {2});
  const std::string index = read_text(cases.path("case.json"));
  const auto changed = [&](const std::string& from, const std::string& to) {
    std::string text = index;
    REQUIRE(text.find(from) != std::string::npos);
    return text.replace(text.find(from), from.size(), to);
  };
  CHECK(holds(index_refusal(cases, "{"), "case.json: is not what `moe-diag cases` writes"));
  CHECK(holds(index_refusal(cases, "[]"), "is not what `moe-diag cases` writes"));
  CHECK(holds(index_refusal(cases, changed("\"version\": 1", "\"version\": 9")), "case.json: version: expected 1"));
  CHECK(
      holds(index_refusal(cases, changed("\"rows\": 2", "\"rows\": 3")), "expected 1 to 4 sizes, the first of them 3"));
  CHECK(holds(index_refusal(cases, changed("\"rows\": 2", "\"rows\": \"x\"")), "cases[0].rows: expected an integer"));
  CHECK(holds(index_refusal(cases, changed("\"name\": \"layer_01_rows_2\"", "\"name\": \"..\"")),
              "cases[0].name: expected the name of a file or folder within this one, found \"..\""));
  CHECK(
      holds(index_refusal(cases, changed("\"numerics\": \"f32\"", "\"numerics\": \"f33\"")), "unknown numerics 'f33'"));
  CHECK(
      holds(index_refusal(cases, changed("\"allowed\"", "\"permitted\"")), "allowed: expected a value, found nothing"));
  write_text(cases.path("case.json"), index);
  REQUIRE(cases.judged().count(CaseOutcome::untested) == 1);
  const std::string in = cases.path("layer_01_rows_2/in.safetensors"), bytes = read_text(in);
  write_text(in, bytes.substr(0, bytes.size() / 2));
  CHECK_THROWS_WITH(cases.judged(), Catch::Matchers::Contains("bytes of data follow the header; write the cases anew"));
  std::filesystem::remove(in);
  CHECK_THROWS_WITH(cases.judged(), Catch::Matchers::Contains("in.safetensors: there is no such file"));
  CHECK(run_tool("judge " + quoted(cases.folder() + "/nowhere")).code == 2);
  const Finished over =
      run_tool("judge " + quoted(cases.folder()) + " --overwrite --json " + quoted(cases.path("case.json")));
  CHECK(over.code == 2);
  CHECK(holds(over.err, "lies in the folder of the cases"));
  CHECK(read_text(cases.path("case.json")) == index);
}

TEST_CASE("one step has the cause that any step of a lane has") {
  const Cases cases("f32", {7}, "moe_expert_out");
  const OwnFile in(cases.path("layer_01_rows_7/in.safetensors"));
  std::vector<float> out = expected_of(cases, "layer_01_rows_7");
  for (float& v : out) v *= 2;
  write_out(cases.path("layer_01_rows_7/out.safetensors"), out_of("moe_expert_out", out, Shape{7, 3, 256}));
  CHECK(cases.judged().cases[0].cause == "scale: multiplied by 2");
}

TEST_CASE("slots of one expert that are wrong name it") {
  const Cases cases("f32", {64}, "moe_expert_out");
  const OwnFile in(cases.path("layer_01_rows_64/in.safetensors"));
  const StoredTensor ids = in.tensor("moe_router_indices");
  std::vector<float> out = expected_of(cases, "layer_01_rows_64");
  for (int i = 0; i < 64 * 3; ++i)
    if (ids.tensor().as<std::int32_t>()[i] == 4) std::fill_n(out.begin() + i * 256, 256, 0.0f);
  write_out(cases.path("layer_01_rows_64/out.safetensors"), out_of("moe_expert_out", out, Shape{64, 3, 256}));
  const JudgedKernel judged = cases.judged();
  CHECK(judged.cases[0].footprint.experts == std::vector<int>{4});
  CHECK(holds(cases.report(), "expert 4: all of its slots are wrong, and no other slot is"));
  CHECK(holds(judged.cases[0].cause, "zero"));
}

TEST_CASE("one wrong element is found however small the error of its row") {
  const Cases cases("bf16", {16});
  std::vector<float> out = expected_of(cases, "layer_01_rows_16");
  float largest = 0;
  for (int i = 0; i < 256; ++i) largest = std::max(largest, std::abs(out[static_cast<std::size_t>(i)]));
  out[3] += 1.5f * largest;
  write_out(cases.path("layer_01_rows_16/out.safetensors"), out_of("moe_ffn_out", out, Shape{16, 256}));
  const JudgedKernel judged = cases.judged();
  CHECK(judged.cases[0].footprint.rows == std::vector<int>{0});
  CHECK(judged.cases[0].footprint.columns == std::vector<Range>{{3, 3}});
}

TEST_CASE("the verdict as JSON has every failing row, and texts for numbers that JSON lacks") {
  const Cases cases("f32", {2});
  std::vector<float> out = expected_of(cases, "layer_01_rows_2");
  out[256] = std::numeric_limits<float>::infinity();
  write_out(cases.path("layer_01_rows_2/out.safetensors"), out_of("moe_ffn_out", out, Shape{2, 256}));
  const auto json = nlohmann::json::parse(judge_json(cases.judged(), cases.folder(), "1"));
  CHECK(json["outcome"] == "falsified");
  CHECK(json["cases"][0]["failing"].size() == 1);
  CHECK(json["cases"][0]["failing"][0]["row"] == 1);
  CHECK(json["cases"][0]["failing"][0]["error"] == "inf");
  CHECK(json["cases"][0]["failing"][0]["nonfinite"] == 1);
}

}  // namespace moe_diag::test
