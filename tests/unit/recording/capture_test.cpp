// SPDX-License-Identifier: MIT
// Captures of the sink npy as recordings.
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

const Site ffn_out{stages::moe_ffn_out, 0}, head{stages::lm_head, -1};

std::string tensor(const std::string& prompt, const std::string& lane, const std::string& stage,
                   const std::string& layer, const std::string& positions, const std::string& file) {
  return fmt::format(R"({{"prompt": "{}", "lane": "{}", "stage": "{}", "layer": {}, "dtype": "f32", "positions": {}, )"
                     R"("file": "{}"}})",
                     prompt, lane, stage, layer, positions, file);
}

struct Manifest {
  std::string lanes = R"({"name": "f32", "numerics": "f32"}, {"name": "truth", "numerics": "f64"})";
  std::string prompts = R"({"id": "a", "tokens": [1, 2, 3, 4, 5], "generated": 2}, {"id": "b", "tokens": [7]})";
  std::vector<std::string> tensors{
      tensor("a", "f32", "lm_head", "null", "[2, 3]", "a/f32/lm_head.npy"),
      tensor("a", "f32", "moe_ffn_out", "0", "[0, 1, 2, 3]", "a/f32/layer_00/moe_ffn_out.npy"),
      tensor("b", "f32", "moe_ffn_out", "0", "[0]", "b/f32/layer_00/moe_ffn_out.npy"),
      tensor("a", "truth", "moe_ffn_out", "0", "[0, 1, 2, 3]", "a/truth/layer_00/moe_ffn_out.npy")};

  void put(const MadeDump& dump) const {
    dump.put("manifest.json",
             fmt::format(R"({{"format": "moe-diag capture", "format_version": 1, "lanes": [{}], "prompts": [{}], )"
                         R"("tensors": [{}]}})",
                         lanes, prompts, fmt::join(tensors, ", ")));
  }
};

void make_capture(MadeDump& dump) {
  Manifest().put(dump);
  dump.array("lm_head", {2, 3});
  std::filesystem::create_directories(dump / "a/f32/layer_00");
  std::filesystem::create_directories(dump / "b/f32/layer_00");
  std::filesystem::rename(dump / "lm_head.npy", dump / "a/f32/lm_head.npy");
  dump.array("layer_00/moe_ffn_out", {7});
  std::filesystem::rename(dump / "layer_00/moe_ffn_out.npy", dump / "b/f32/layer_00/moe_ffn_out.npy");
  dump.array("layer_00/moe_ffn_out", {0, 1, 2, 3});
  std::filesystem::rename(dump / "layer_00/moe_ffn_out.npy", dump / "a/f32/layer_00/moe_ffn_out.npy");
  dump.remove("layer_00");
  dump.options.lane = "f32";
}

}  // namespace

TEST_CASE("a lane of a capture is a recording, a prompt a request") {
  MadeDump dump;
  make_capture(dump);
  const Recording recording = dump.open();
  CHECK(recording.layout() == "capture of moe-diag (lane f32)");
  CHECK(recording.numerics() == "f32");
  REQUIRE(recording.requests().size() == 2);
  CHECK(recording.requests()[0].id == "a");
  CHECK(recording.requests()[0].tokens == std::vector<std::int32_t>{1, 2, 3, 4});
  CHECK(recording.requests()[0].end == 4);
  REQUIRE(recording.calls().size() == 3);  // the prompt, a token that was generated, the other prompt
  CHECK(recording.calls()[0].rows == 3);
  CHECK((recording.calls()[1].first == 3 && recording.calls()[1].rows == 1));
  CHECK(rows_seen(recording, ffn_out, 0, 5, 0) == std::vector<int>{0, 1, 2, 3, -1});
  CHECK(rows_seen(recording, ffn_out, 0, 2, 1) == std::vector<int>{7, -1});
  CHECK(rows_seen(recording, head, 0, 4, 0) == std::vector<int>{-1, -1, 2, 3});
  CHECK(rows_seen(recording, head, 0, 1, 1) == std::vector<int>{-1});
  std::vector<std::byte> memory;
  CHECK(recording.rows(0, ffn_out, {0, 4}, memory).shape == Shape{4, 8});
  CHECK(memory.empty());
  CHECK(recording.place(0, ffn_out, 2)->file == dump / "a/f32/layer_00/moe_ffn_out.npy");
  CHECK(recording.place(1, ffn_out, 0)->file == dump / "b/f32/layer_00/moe_ffn_out.npy");
}

TEST_CASE("a capture that does not hold together is refused") {
  struct Planted {
    std::function<void(MadeDump&, Manifest&)> plant;
    std::string expected;
  };
  const std::vector<Planted> cases{
      {[](MadeDump& d, Manifest&) { d.options.lane = ""; },
       "manifest.json: has the lanes f32, truth: say which one is judged"},
      {[](MadeDump& d, Manifest&) { d.options.lane = "truht"; }, "unknown lane 'truht', did you mean 'truth'?"},
      {[](MadeDump&, Manifest& m) { m.lanes = ""; }, "has no lane"},
      {[](MadeDump&, Manifest& m) { m.prompts = ""; }, "has no prompt"},
      {[](MadeDump&, Manifest& m) { m.tensors.clear(); }, "has no array of lane f32"},
      {[](MadeDump&, Manifest& m) { m.prompts = R"({"id": "a", "tokens": [99]})"; },
       "token 99: the model's vocabulary has 32"},
      {[](MadeDump&, Manifest& m) { m.prompts = R"({"id": "a", "tokens": [1], "generated": 2})"; },
       "2 of 1 tokens were generated"},
      {[](MadeDump&, Manifest& m) { m.prompts = R"({"id": "a", "tokens": [1]}, {"id": "a", "tokens": [1]})"; },
       "prompt 'a' comes twice"},
      {[](MadeDump&, Manifest& m) { m.prompts = R"({"id": "a", "tokens": [1, 2, 3]}, {"id": "b", "tokens": [1]})"; },
       "prompt 'a' has 3 tokens, and rows of position 3"},
      {[](MadeDump&, Manifest& m) { m.prompts = R"({"id": "b", "tokens": [1]})"; }, "its prompt is not listed"},
      {[](MadeDump&, Manifest& m) {
         m.tensors[1] = tensor("a", "f32", "moe_ffn_out", "0", "[0, 1, 2]", "a/f32/layer_00/moe_ffn_out.npy");
       },
       "has 4 rows, expected 3, as the manifest has positions"},
      {[](MadeDump&, Manifest& m) {
         m.tensors[1] = tensor("a", "f32", "moe_ffn_out", "0", "[0, 2, 1, 3]", "a/f32/layer_00/moe_ffn_out.npy");
       },
       "position 1: expected ascending positions"},
      {[](MadeDump&, Manifest& m) { m.tensors[1] = tensor("a", "f32", "moe_ffn_out", "8", "[0]", "x"); },
       "layer 8: the model has layers 0 to 2"},
      {[](MadeDump&, Manifest& m) { m.tensors[1] = tensor("a", "f32", "moe_fn_out", "0", "[0]", "x"); },
       "did you mean 'moe_ffn_out'?"},
      {[](MadeDump&, Manifest& m) { m.tensors[2] = m.tensors[1]; },
       "layer 0, moe_ffn_out is listed twice for its prompt"},
      {[](MadeDump&, Manifest& m) {
         m.tensors[1] = R"({"prompt": "a", "lane": "f32", "stage": "lm_head", "layer": null})";
       },
       "has no file"},
      {[](MadeDump& d, Manifest&) { d.remove("a/f32/lm_head.npy"); },
       "lm_head.npy: there is no such file, expected the rows of lm_head"},
      {[](MadeDump& d, Manifest&) {
         d.put("b/f32/layer_00/moe_ffn_out.npy", npy_bytes("<f8", {1, 8}, bytes_of(std::vector<double>(8, 1))));
       },
       "has f64, other prompts have f32 of this stage"},
  };
  for (const Planted& planted : cases) {
    CAPTURE(planted.expected);
    MadeDump dump;
    make_capture(dump);
    Manifest manifest;
    planted.plant(dump, manifest);
    manifest.put(dump);
    CHECK_THAT(dump.refusal(), Catch::Matchers::Contains(planted.expected));
  }
  MadeDump dump;
  make_capture(dump);
  dump.put("manifest.json", R"({"format": "moe-diag capture", "format_version": 2})");
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("format_version: expected a whole number, 1 to 1, found 2"));
  dump.put("manifest.json", R"({"format": "other"})");
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("no capture of moe-diag"));
}

}  // namespace moe_diag
