// SPDX-License-Identifier: MIT
#include "core/recording/recording.hpp"

#include <cstdint>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

const Site ffn_out{stages::moe_ffn_out, 0}, ids{stages::moe_router_indices, 0}, head{stages::lm_head, -1},
    residual{stages::post_ffn_residual, 2};

}  // namespace

TEST_CASE("a dump of npy arrays has the rows of all calls by position") {
  MadeDump dump;
  make_sound(dump);
  const Recording recording = dump.open();
  CHECK(recording.layout() == "native, npy");
  CHECK(recording.engine() == "made");
  CHECK(recording.cut_at().empty());
  CHECK(recording.checked() ==
        "looked at the ids of all rows, and at the first and the last row of every call for zeros");
  CHECK(recording.sites() == std::vector<Site>{{stages::embedding, -1}, ids, ffn_out, residual, head});
  REQUIRE(recording.requests().size() == 1);
  const RecordedRequest& request = recording.requests()[0];
  CHECK(request.id == "r0");
  CHECK(request.tokens == std::vector<std::int32_t>{3, 1, 4, 1, 5, 9});
  CHECK((request.first == 0 && request.end == 6));
  REQUIRE(recording.calls().size() == 3);
  const RecordedCall& call = recording.calls()[1];
  CHECK((call.number == 1 && call.first == 4 && call.rows == 1 && call.batch_rows == 1));
  CHECK((call.mode == "graph" && call.kernel == "small" && call.rank == 0 && call.graph_size == 8));
  CHECK(recording.calls()[2].rank == -1);
  CHECK(rows_seen(recording, ffn_out, 0, 8) == std::vector<int>{0, 1, 2, 3, 4, 5, -1, -1});
  CHECK(recording.call_at(0, 3) == 0);
  CHECK(recording.call_at(0, 5) == 2);
  CHECK(recording.call_at(0, 6) == -1);
}

TEST_CASE("rows that lie in one piece are not copied, over calls as well") {
  MadeDump dump;
  make_sound(dump);
  const Recording recording = dump.open();
  std::vector<std::byte> memory;
  const Tensor all = recording.rows(0, ffn_out, {0, 6}, memory);
  CHECK(memory.empty());
  CHECK(all.shape == Shape{6, 8});
  CHECK(all.dtype == DType::f32);
  CHECK(all.value(5 * 8 + 3) == made_value(5, 3));
  CHECK(recording.rows(0, ids, {2, 3}, memory).as<std::int32_t>()[1] == made_id(2, 1));
  CHECK(memory.empty());
  CHECK(!recording.rows(0, ffn_out, {5, 2}, memory));
  CHECK(!recording.rows(0, {stages::attn_norm, 0}, {0, 1}, memory));
  CHECK(recording.has(ffn_out));
  CHECK(!recording.has({stages::moe_ffn_out, 1}));
  CHECK(recording.has(0, ffn_out, {0, 6}));
  CHECK(!recording.has(0, ffn_out, {0, 7}));
  CHECK(!recording.has(0, ffn_out, {0, 0}));
  CHECK(!recording.has(1, ffn_out, {0, 1}));
}

TEST_CASE("a row has its file and offset, and a stage the engine's name") {
  MadeDump dump;
  make_sound(dump);
  const Recording recording = dump.open();
  const auto place = recording.place(0, ffn_out, 4);
  REQUIRE(place);
  CHECK(place->file == dump / "layer_00/moe_ffn_out.npy");
  CHECK(place->offset == 128 + 4 * 8 * 4);
  CHECK(place->tensor.empty());
  CHECK(recording.engine_name(ffn_out) == std::vector<std::string>{"layer_00/moe_ffn_out.npy"});
  CHECK(recording.engine_name({stages::attn_norm, 0}).empty());
  CHECK(!recording.place(0, ffn_out, 6));
}

TEST_CASE("a stage may be called by its alias, and rows of heads may be flat") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"rows": 2})", R"({"rows": 1})"});
  dump.array("layer_01/q_norm", {0, 1, 2});
  dump.put("layer_01/k_norm.npy", npy_bytes("<f4", {3, 4}, bytes_of(std::vector<float>(12, 0.5f))));
  dump.put("layer_01/layer_output.npy", npy_bytes("<f8", {3, 8}, bytes_of(std::vector<double>(24, 0.5))));
  const Recording recording = dump.open();
  std::vector<std::byte> memory;
  CHECK(recording.rows(0, {stages::q_norm, 1}, {0, 3}, memory).shape == Shape{3, 2, 4});
  CHECK(recording.rows(0, {stages::k_norm, 1}, {0, 3}, memory).shape == Shape{3, 1, 4});
  CHECK(recording.rows(0, {stages::post_ffn_residual, 1}, {0, 3}, memory).dtype == DType::f64);
  CHECK(recording.engine_name({stages::post_ffn_residual, 1})[0] == "layer_01/layer_output.npy");
  CHECK(recording.requests()[0].id == "0");
  CHECK(recording.requests()[0].tokens.empty());
}

TEST_CASE("a batch has a call of each request, padding is left out, and stages may have last rows only") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"parts": [{"request": "a", "rows": 2, "tokens": [1, 2]}, {"request": "b", "rows": 4}],
                  "padding": 2, "recorded": {"lm_head": 3}})",
              R"({"parts": [{"request": "b", "rows": 1, "recorded": {"lm_head": 1}},
                            {"request": "a", "rows": 1, "recorded": {"lm_head": 0}}]})",
              R"({"request": "a", "rows": 3, "recorded": 1})"});
  std::string text = read_text(dump / "calls.jsonl"), lines;
  for (std::size_t i = 0; i < text.size(); ++i)  // a line each
    if (text[i] != '\n' || text[i - 1] == '}') lines += text[i];
  dump.put("calls.jsonl", lines);
  dump.array("layer_00/moe_ffn_out", {0, 1, 2, 3, 4, 5, 6, 7, 8});
  dump.array("lm_head", {3, 4, 5, 6, 8});
  const Recording recording = dump.open();
  REQUIRE(recording.requests().size() == 2);
  REQUIRE(recording.calls().size() == 5);
  CHECK(recording.calls()[1].batch_rows == 4);
  CHECK(recording.requests()[0].id == "a");
  CHECK(rows_seen(recording, ffn_out, 0, 7, 0) == std::vector<int>{0, 1, 7, -1, -1, 8, -1});
  CHECK(rows_seen(recording, ffn_out, 0, 4, 1) == std::vector<int>{2, 3, 6, -1});
  CHECK(rows_seen(recording, head, 0, 7, 0) == std::vector<int>{-1, -1, -1, -1, -1, 8, -1});
  CHECK(rows_seen(recording, head, 0, 4, 1) == std::vector<int>{-1, 3, 6, -1});
}

TEST_CASE("a stage that has no row in any call is not recorded, and some stage has to be") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"rows": 2, "recorded": {"lm_head": 0}})", R"({"rows": 1, "recorded": {"lm_head": 0}})"});
  dump.array("layer_00/moe_ffn_out", {0, 1, 2});
  dump.array("lm_head", {});
  const Recording recording = dump.open();
  CHECK(recording.sites() == std::vector<Site>{ffn_out});
  CHECK(!recording.has(head));
  dump.remove("layer_00");
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("dump: no stage has a row of any call"));
}

TEST_CASE("positions are said row by row, and a late recording begins behind its prefix") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"positions": [10, 11, 20], "tokens": [1, 2, 3]})", R"({"rows": 1})"});
  dump.array("layer_00/moe_ffn_out", {0, 1, 2, 3});
  const Recording recording = dump.open();
  CHECK(recording.calls().size() == 3);
  CHECK(recording.calls()[1].number == 0);
  CHECK(recording.requests()[0].first == 10);
  CHECK(recording.requests()[0].end == 22);
  CHECK(rows_seen(recording, ffn_out, 9, 4) == std::vector<int>{-1, 0, 1, -1});
  CHECK(rows_seen(recording, ffn_out, 20, 2) == std::vector<int>{2, 3});
}

TEST_CASE("ids of other types are read as int32, rows without alignment are copied") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"rows": 2})"});
  const std::vector<std::pair<std::string, std::string>> types{
      {"|i1", bytes_of(std::vector<std::int8_t>{1, 0, 5, 2})},
      {"|u1", bytes_of(std::vector<std::uint8_t>{1, 0, 5, 2})},
      {"<i2", bytes_of(std::vector<std::int16_t>{1, 0, 5, 2})},
      {"<u2", bytes_of(std::vector<std::uint16_t>{1, 0, 5, 2})},
      {"<u4", bytes_of(std::vector<std::uint32_t>{1, 0, 5, 2})},
      {"<i8", bytes_of(std::vector<std::int64_t>{1, 0, 5, 2})}};
  for (const auto& [type, bytes] : types) {
    CAPTURE(type);
    dump.put("layer_00/moe_router_indices.npy", npy_bytes(type, {2, 2}, bytes));
    const Recording recording = dump.open();
    std::vector<std::byte> memory;
    const Tensor rows = recording.rows(0, ids, {0, 2}, memory);
    REQUIRE(rows.dtype == DType::i32);
    CHECK(std::vector<std::int32_t>(rows.as<std::int32_t>(), rows.as<std::int32_t>() + 4) ==
          std::vector<std::int32_t>{1, 0, 5, 2});
  }
  const std::vector<float> values{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16};
  // 10 bytes come before it: no multiple of 4 behind it.
  const std::string odd = "{\"descr\": \"<f4\", \"fortran_order\": False, \"shape\": (2, 8)}";
  dump.put("layer_00/moe_ffn_out.npy",
           std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(odd.size()) + '\0' + odd + bytes_of(values));
  const Recording recording = dump.open();
  std::vector<std::byte> memory;
  CHECK(recording.rows(0, ffn_out, {1, 1}, memory).value(7) == 16);
  CHECK(memory.size() == 32);
}

TEST_CASE("rows with a value for each key are filled up with 0 to the longest") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"rows": 2})", R"({"rows": 1})"});
  const auto tensor = [](int rows, int keys, int bytes) {
    return R"({"layer_00/attn_scores":{"dtype":"F32","shape":[)" + std::to_string(rows) + ",2," + std::to_string(keys) +
           R"(],"data_offsets":[0,)" + std::to_string(bytes) + "]}}";
  };
  dump.put("call_00000.safetensors",
           safetensors_bytes(tensor(2, 2, 32), bytes_of(std::vector<float>{1, 0, 2, 0, 3, 4, 5, 6})));
  dump.put("call_00001.safetensors",
           safetensors_bytes(tensor(1, 3, 24), bytes_of(std::vector<float>{7, 8, 9, 10, 11, 12})));
  const Recording recording = dump.open();
  std::vector<std::byte> memory;
  const Tensor rows = recording.rows(0, {stages::attn_scores, 0}, {1, 2}, memory);
  CHECK(rows.shape == Shape{2, 2, 3});
  std::vector<double> values;
  for (int i = 0; i < 12; ++i) values.push_back(rows.value(i));
  CHECK(values == std::vector<double>{3, 4, 0, 5, 6, 0, 7, 8, 9, 10, 11, 12});
  dump.calls({R"({"rows": 2, "first": 1})", R"({"rows": 1})"});
  CHECK_THAT(dump.refusal(),
             Catch::Matchers::Contains("layer_00/attn_scores': row 1 of call 0 has 2 keys, expected 3 or "
                                       "more at position 2"));
}

TEST_CASE("a fused shared expert is left out where it is said to be there") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"rows": 2})"});
  dump.put("layer_00/moe_router_indices.npy",
           npy_bytes("<i4", {2, 3}, bytes_of(std::vector<std::int32_t>{1, 0, 6, 5, 2, 6})));
  dump.put("layer_00/moe_router_weights.npy",
           npy_bytes("<f4", {2, 3}, bytes_of(std::vector<float>{0.75f, 0.25f, 1, 0.5f, 0.5f, 1})));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("one slot more than the model uses: a fused shared expert?"));
  dump.options.fused_shared_expert = true;
  const Recording recording = dump.open();
  std::vector<std::byte> memory;
  const Tensor rows = recording.rows(0, ids, {0, 2}, memory);
  CHECK(rows.shape == Shape{2, 2});
  CHECK(rows.as<std::int32_t>()[2] == 5);
  CHECK(recording.rows(0, {stages::moe_router_weights, 0}, {1, 1}, memory).value(1) == 0.5);
  dump.put("layer_00/moe_router_weights.npy",
           npy_bytes("<f4", {2, 3}, bytes_of(std::vector<float>{0.75f, 0.25f, 0.4f, 0.5f, 0.5f, 0.4f})));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("has weight 0.4 in slot 2, expected 1"));
  dump.put("layer_00/moe_router_indices.npy",
           npy_bytes("<i4", {2, 3}, bytes_of(std::vector<std::int32_t>{1, 0, 6, 5, 2, 4})));
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("row 1 of call 0 has id 4 in slot 2, expected 6"));
}

TEST_CASE("folders behind symbolic links are read") {
  MadeDump dump;
  make_sound(dump);
  const TemporaryFolder elsewhere;
  std::filesystem::rename(dump / "layer_00", elsewhere / "moved");
  std::filesystem::create_directory_symlink(elsewhere / "moved", dump / "layer_00");
  std::filesystem::rename(dump / "lm_head.npy", elsewhere / "head");
  std::filesystem::create_symlink(elsewhere / "head", dump / "lm_head.npy");
  CHECK(rows_seen(dump.open(), ffn_out, 0, 2) == std::vector<int>{0, 1});
}

}  // namespace moe_diag
