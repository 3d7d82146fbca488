// SPDX-License-Identifier: MIT
// Dumps with a safetensors file for each call.
#include <string>
#include <vector>

#include "core/file/safetensors_file.hpp"
#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

const Site ffn_out{stages::moe_ffn_out, 0}, head{stages::lm_head, -1};

struct Made {
  std::string name;
  std::vector<int> rows;
  std::int64_t width = 8;
  std::string type = "F32";
};

void put_call(const MadeDump& dump, int call, const std::vector<Made>& tensors) {
  std::string header = "{", data;
  for (const Made& made : tensors) {
    std::vector<float> values;
    for (const int row : made.rows)
      for (std::int64_t c = 0; c < made.width; ++c) values.push_back(static_cast<float>(made_value(row, c)));
    header += (header.size() > 1 ? "," : "") +
              fmt::format(R"("{}":{{"dtype":"{}","shape":[{},{}],"data_offsets":[{},{}]}})", made.name, made.type,
                          made.rows.size(), made.width, data.size(), data.size() + values.size() * 4);
    data += bytes_of(values);
  }
  dump.put(fmt::format("call_{:05}.safetensors", call), safetensors_bytes(header + "}", data));
}

void make_sound_calls(const MadeDump& dump) {
  dump.head(R"(, "closed": true, "calls": 2)");
  dump.calls({R"({"request": "r0", "first": 0, "rows": 3})", R"({"request": "r0", "rows": 1})"});
  put_call(dump, 0, {{"layer_00/moe_ffn_out", {0, 1, 2}}, {"lm_head", {2}, 32}});
  put_call(dump, 1, {{"layer_00/moe_ffn_out", {3}}, {"lm_head", {3}, 32}});
}

}  // namespace

TEST_CASE("a dump of a file for each call has rows by position, and shapes say which") {
  MadeDump dump;
  make_sound_calls(dump);
  const Recording recording = dump.open();
  CHECK(recording.layout() == "native, safetensors");
  CHECK(rows_seen(recording, ffn_out, 0, 5) == std::vector<int>{0, 1, 2, 3, -1});
  CHECK(rows_seen(recording, head, 0, 5) == std::vector<int>{-1, -1, 2, 3, -1});
  std::vector<std::byte> memory;
  const Tensor both = recording.rows(0, ffn_out, {2, 2}, memory);
  REQUIRE(both);
  CHECK(memory.size() == 64);
  CHECK((both.value(0) == made_value(2, 0) && both.value(8 + 7) == made_value(3, 7)));
  CHECK(recording.engine_name(ffn_out) == std::vector<std::string>{"layer_00/moe_ffn_out"});
  const auto place = recording.place(0, ffn_out, 1);
  REQUIRE(place);
  CHECK(place->file == dump / "call_00000.safetensors");
  CHECK(place->tensor == "layer_00/moe_ffn_out");
  float value = 0;
  std::memcpy(&value, read_text(place->file).data() + place->offset, sizeof value);
  CHECK(static_cast<double>(value) == made_value(1, 0));
}

TEST_CASE("rows of a batch are told by recorded") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"parts": [{"request": "a", "rows": 2, "recorded": {"lm_head": 1}}, )"
              R"({"request": "b", "rows": 2, "recorded": {"lm_head": 1}}]})"});
  put_call(dump, 0, {{"layer_00/moe_ffn_out", {0, 1, 2, 3}}, {"lm_head", {1, 3}, 32}});
  const Recording recording = dump.open();
  CHECK(rows_seen(recording, head, 0, 2, 0) == std::vector<int>{-1, 1});
  CHECK(rows_seen(recording, head, 0, 2, 1) == std::vector<int>{-1, 3});
  CHECK(rows_seen(recording, ffn_out, 0, 2, 1) == std::vector<int>{2, 3});
  dump.calls({R"({"parts": [{"request": "a", "rows": 2}, {"request": "b", "rows": 2}]})"});
  CHECK_THAT(dump.refusal(),
             Catch::Matchers::Contains("tensor 'lm_head': has 2 of 4 rows of a call of several requests, "
                                       "expected `recorded` in its line"));
}

TEST_CASE("files of calls that contradict the lines are refused") {
  struct Planted {
    std::function<void(MadeDump&)> plant;
    std::string expected;
  };
  const std::vector<Planted> cases{
      {[](MadeDump& d) { d.remove("call_00001.safetensors"); },
       "call_00001.safetensors: there is no such file, expected one for each of 2 calls"},
      {[](MadeDump& d) { d.remove("call_00000.safetensors"); }, "call_00000.safetensors: there is no such file"},
      {[](MadeDump& d) {
         put_call(d, 2, {{"lm_head", {1}, 32}});
       },
       "call_00002.safetensors: is of call 2, expected calls 0 to 1"},
      {[](MadeDump& d) { d.put("call_1.safetensors", ""); }, "call 1 has two files"},
      {[](MadeDump& d) { d.put("call_00002.safetensors.part", ""); },
       "call_00002.safetensors.part: was still being written"},
      {[](MadeDump& d) { d.put("layer_00/call_00000.safetensors", ""); }, "expected a file for each call"},
      {[](MadeDump& d) { d.put("call_x.safetensors", ""); }, "expected a file for each call"},
      {[](MadeDump& d) { d.put("call_00001.safetensors", ""); }, "call_00001.safetensors: the file is empty"},
      {[](MadeDump& d) { d.put("call_00001.safetensors", "12345678"); }, "no safetensors file"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"layer_00/moe_fn_out", {3}}});
       },
       "call_00001.safetensors: tensor 'layer_00/moe_fn_out': unknown stage 'moe_fn_out', did you mean 'moe_ffn_out'?"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"moe_ffn_out", {3}}});
       },
       "is a stage of a layer"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"blk.0/moe_ffn_out", {3}}});
       },
       "'blk.0': expected layer_ and the number of a layer, as in layer_07"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"layer_5/moe_ffn_out", {3}}});
       },
       "layer 5: the model has layers 0 to 2"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"layer_0/moe_ffn_out", {3}}, {"layer_00/moe_ffn_out", {3}}});
       },
       "layer 0, moe_ffn_out comes twice, under two names"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"layer_00/moe_ffn_out", {3, 4}}});
       },
       "has 2 rows, the call has 1: rows of padding? Count them in rows, and say padding"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"layer_00/moe_ffn_out", {3}, 4}});
       },
       "found shape [1, 4], expected [rows, 8]"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"layer_00/moe_ffn_out", {3}, 8, "I32"}});
       },
       "has whole numbers of type i32"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"layer_00/moe_ffn_out", {3}, 16, "BF16"}});
       },
       "data_offsets"},
      {[](MadeDump& d) {
         put_call(d, 1, {{"layer_00/moe_ffn_out", {3}, 8, "U32"}});
       },
       "expected f64, f32, f16 or bf16"},
      {[](MadeDump& d) {
         d.calls({R"({"request": "r0", "rows": 3, "recorded": {"lm_head": 2}})", R"({"request": "r0", "rows": 1})"});
       },
       "tensor 'lm_head': has 1 rows, `recorded` of its call says 2"},
  };
  for (const Planted& planted : cases) {
    CAPTURE(planted.expected);
    MadeDump dump;
    make_sound_calls(dump);
    planted.plant(dump);
    CHECK_THAT(dump.refusal(), Catch::Matchers::Contains(planted.expected));
  }
}

TEST_CASE("a stage has one type in all calls") {
  MadeDump dump;
  make_sound_calls(dump);
  dump.put("call_00001.safetensors",
           safetensors_bytes(R"({"layer_00/moe_ffn_out":{"dtype":"F64","shape":[1,8],"data_offsets":[0,64]}})",
                             bytes_of(std::vector<double>(8, 1))));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("has f64, earlier calls have f32 of this stage"));
  dump.put("call_00001.safetensors",
           safetensors_bytes(R"({"layer_00/moe_ffn_out":{"dtype":"F8_E4M3","shape":[1,8],"data_offsets":[0,8]}})",
                             "12345678"));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("its type is F8_E4M3, expected F64, F32, F16, BF16"));
}

}  // namespace moe_diag
