// SPDX-License-Identifier: MIT
// Dumps of other tools, read with a map: the same rows as those of a native dump, or a refusal that says where.
#include <string>
#include <vector>

#include "core/recording/known_maps.hpp"
#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

using Catch::Matchers::Contains;

// A foreign dump of four tokens, whose value at (row, column) is made_value().
class ForeignDump : public MadeDump {
 public:
  // Rows of made values: `columns` of each from `first` on, as f32.
  std::string rows(const std::vector<int>& numbers, std::int64_t columns, std::int64_t first = 0) const {
    std::vector<float> values;
    for (const int row : numbers)
      for (std::int64_t c = 0; c < columns; ++c) values.push_back(static_cast<float>(made_value(row, first + c)));
    return bytes_of(values);
  }
  void npy(const std::string& name, const std::vector<int>& numbers, std::int64_t columns,
           std::int64_t first = 0) const {
    put(name, npy_bytes("<f4", {static_cast<std::int64_t>(numbers.size()), columns}, rows(numbers, columns, first)));
  }
  void ints(const std::string& name, const std::vector<std::int32_t>& values) const {
    put(name, npy_bytes("<i4", {static_cast<std::int64_t>(values.size())}, bytes_of(values)));
  }
  Recording read(const std::string& stages, const std::string& more = "") {
    options.map = *this / "map.yaml";
    put("map.yaml", "map: 1\n" + more + "stages:\n" + stages);
    return open();
  }
  std::string refused(const std::string& stages, const std::string& more = "") {
    try {
      read(stages, more);
    } catch (const Error& e) {
      CHECK(e.kind() == ErrorKind::usage);
      return e.what();
    }
    return "";
  }
};

const Site ffn_out{stages::moe_ffn_out, 0}, residual{stages::post_ffn_residual, 2}, qkv{stages::qkv_matmul, 1},
    gate{stages::moe_expert_gate, 0};
const std::vector<int> four{0, 1, 2, 3};

// The values of a position's row.
std::vector<double> row_of(const Recording& recording, Site site, int position, int request = 0) {
  std::vector<std::byte> memory;
  const Tensor row = recording.rows(request, site, {position, 1}, memory);
  REQUIRE(row);
  std::vector<double> values;
  for (std::int64_t i = 0; i < row.shape.count(); ++i) values.push_back(row.value(i));
  return values;
}
std::vector<double> made_row(int row, std::int64_t columns) {
  std::vector<double> values;
  for (std::int64_t c = 0; c < columns; ++c) values.push_back(made_value(row, c));
  return values;
}

}  // namespace

TEST_CASE("a map finds layers, and rows that lie in one piece are not copied") {
  ForeignDump dump;
  for (const int layer : {0, 1, 2}) dump.npy(fmt::format("L{}.moe.npy", layer), four, 8);
  dump.ints("ids.npy", {5, 6, 7, 8});
  const Recording recording =
      dump.read("  moe_ffn_out: \"L{layer}.moe.npy\"\n", "engine: my port\nnumerics: bf16\ntokens: ids.npy\n");
  CHECK(recording.layout() == "map map.yaml");
  CHECK(recording.engine() == "my port");
  CHECK(recording.numerics() == "bf16");
  CHECK(recording.sites().size() == 3);
  CHECK(recording.requests()[0].tokens == std::vector<std::int32_t>{5, 6, 7, 8});
  std::vector<std::byte> memory;
  CHECK(recording.rows(0, ffn_out, {0, 4}, memory).shape == Shape{4, 8});
  CHECK(memory.empty());
  CHECK(row_of(recording, ffn_out, 2) == made_row(2, 8));
  const auto place = recording.place(0, ffn_out, 2);
  REQUIRE(place);
  CHECK(place->file == dump / "L0.moe.npy");
  CHECK(place->offset == std::filesystem::file_size(dump / "L0.moe.npy") - 2 * 32);
}

TEST_CASE("calls and requests come from names: rows follow each other, by tokens and positions where they are there") {
  ForeignDump dump;
  dump.npy("a/1/moe-0.npy", four, 8);
  dump.npy("a/2/moe-0.npy", {4}, 8);
  dump.npy("b/1/moe-0.npy", {7, 8}, 8);
  dump.npy("head.a.1.npy", {3}, 32);
  dump.npy("head.a.2.npy", {4}, 32);
  dump.npy("head.b.1.npy", {8}, 32);
  const std::string stages =
      "  moe_ffn_out: \"{request}/{call}/moe-{layer}.npy\"\n"
      "  lm_head: {from: \"head.{request}.{call}.npy\", rows: last}\n";
  const Recording recording = dump.read(stages);
  REQUIRE(recording.requests().size() == 2);
  CHECK(recording.requests()[0].id == "a");
  CHECK(rows_seen(recording, ffn_out, 0, 6) == std::vector<int>{0, 1, 2, 3, 4, -1});
  CHECK(rows_seen(recording, ffn_out, 0, 2, 1) == std::vector<int>{7, 8});
  CHECK(rows_seen(recording, {stages::lm_head, -1}, 2, 3) == std::vector<int>{-1, 3, 4});
  // A last token without a row was generated.
  dump.ints("a.ids.npy", {1, 2, 3, 4, 5, 6});
  dump.ints("b.ids.npy", {1, 2});
  CHECK(dump.read(stages, "tokens: \"{request}.ids.npy\"\n").requests()[0].tokens ==
        std::vector<std::int32_t>{1, 2, 3, 4, 5});
  dump.ints("b.ids.npy", {1, 2, 3, 4});
  CHECK_THAT(dump.refused(stages, "tokens: \"{request}.ids.npy\"\n"),
             Contains("b.ids.npy: has 4 tokens, expected 2, as the arrays have rows"));
  dump.ints("b.ids.npy", {1});
  CHECK_THAT(dump.refused(stages, "tokens: \"{request}.ids.npy\"\n"),
             Contains("b.ids.npy: has 1 tokens, expected 1 more for call 1"));
  dump.ints("a.pos.npy", {2, 3, 4, 5, 6});
  dump.ints("b.pos.npy", {0, 1});
  CHECK(rows_seen(dump.read(stages, "positions: \"{request}.pos.npy\"\n"), ffn_out, 1, 3) ==
        std::vector<int>{-1, 0, 1});
}

TEST_CASE("a batch is told apart by lengths, added up or not") {
  ForeignDump dump;
  dump.npy("moe-0.npy", {0, 1, 2, 3, 4}, 8);
  for (const std::vector<std::int32_t>& lengths : {std::vector<std::int32_t>{2, 3}, {0, 2, 5}}) {
    dump.ints("lengths.npy", lengths);
    const Recording recording = dump.read("  moe_ffn_out: \"moe-{layer}.npy\"\n", "lengths: lengths.npy\n");
    REQUIRE(recording.requests().size() == 2);
    CHECK(rows_seen(recording, ffn_out, 0, 3, 1) == std::vector<int>{2, 3, 4});
    CHECK(recording.calls()[0].batch_rows == 5);
  }
  dump.ints("lengths.npy", {2, 2});
  CHECK_THAT(dump.refused("  moe_ffn_out: \"moe-{layer}.npy\"\n", "lengths: lengths.npy\n"),
             Contains("lengths: found 2, 2, expected the rows of each sequence"));
}

TEST_CASE("axes: all layers in one array, batches of one, and values that do not lie in one piece") {
  ForeignDump dump;
  // [token, layer, hidden] with the input of layer 0 in front
  std::vector<float> values;
  for (const int token : four)
    for (int number = 0; number < 4; ++number)
      for (int c = 0; c < 8; ++c) values.push_back(static_cast<float>(made_value(token * 10 + number, c)));
  dump.put("h.npy", npy_bytes("<f4", {4, 4, 8}, bytes_of(values)));
  const std::string stages =
      "  post_ffn_residual: {from: h.npy, axes: token layer hidden, layer_offset: 1}\n"
      "  embedding: {from: h.npy, axes: token layer hidden, at: 0}\n";
  const Recording recording = dump.read(stages);
  CHECK(recording.sites().size() == 4);
  CHECK(row_of(recording, residual, 2) == made_row(23, 8));
  CHECK(row_of(recording, {stages::embedding, -1}, 2) == made_row(20, 8));
  CHECK(recording.place(0, residual, 2)->offset ==
        std::filesystem::file_size(dump / "h.npy") - (4 * 8 + 8) * sizeof(float));
  CHECK(row_of(dump.read("  post_ffn_residual: {from: h.npy, axes: token layer x, layers: [0, 3, 2, 1], "
                         "layer_offset: 1}\n"),
               residual, 1) == made_row(11, 8));
  CHECK_THAT(dump.refused("  post_ffn_residual: {from: h.npy, axes: token layer hidden}\n"),
             Contains("h.npy: its axis layer has 4, expected 3: say with 'layers' which ones"));
  CHECK_THAT(dump.refused("  embedding: {from: h.npy, axes: token layer hidden}\n"), Contains("with 'at'"));
  // [heads, tokens, size]
  values.clear();
  for (int head = 0; head < 2; ++head)
    for (const int token : four)
      for (int c = 0; c < 4; ++c) values.push_back(static_cast<float>(made_value(token, head * 4 + c)));
  dump.put("q-1.npy", npy_bytes("<f4", {1, 2, 4, 4}, bytes_of(values)));
  const Recording heads = dump.read("  q_norm: {from: \"q-{layer}.npy\", axes: batch head token size}\n");
  CHECK(row_of(heads, {stages::q_norm, 1}, 3) == made_row(3, 8));
  dump.put("moe-0.npy", npy_bytes("<f4", {1, 4, 8}, dump.rows(four, 8)));
  CHECK(row_of(dump.read("  moe_ffn_out: \"moe-{layer}.npy\"\n"), ffn_out, 3) == made_row(3, 8));
}

TEST_CASE("arrays side by side, sums, and parts of rows") {
  ForeignDump dump;
  dump.npy("q-1.npy", four, 8);
  dump.npy("k-1.npy", four, 4, 8);
  dump.npy("v-1.npy", four, 4, 12);
  const std::string stages = "  qkv_matmul: {from: [\"q-{layer}.npy\", \"k-{layer}.npy\", \"v-{layer}.npy\"]}\n";
  CHECK(row_of(dump.read(stages), qkv, 3) == made_row(3, 16));
  dump.remove("v-1.npy");
  CHECK_THAT(dump.refused(stages), Contains("is called 'v-{layer}.npy'"));
  dump.npy("v-1.npy", {0, 1, 2}, 4);
  CHECK_THAT(dump.refused(stages), Contains("v-1.npy: has 3 rows, q-1.npy has 4: expected as many"));

  dump.npy("part-0.npy", four, 8);
  dump.npy("rest-0.npy", four, 8);
  const Recording sum = dump.read("  moe_ffn_out: {from: [\"part-{layer}.npy\", \"rest-{layer}.npy\"], join: sum}\n");
  CHECK(row_of(sum, ffn_out, 1)[3] == 2 * made_value(1, 3));

  // [token, slot, gate and up]
  std::vector<float> values;
  for (const int token : four)
    for (int slot = 0; slot < 2; ++slot)
      for (int c = 0; c < 8; ++c) values.push_back(static_cast<float>(token * 100 + slot * 10 + c));
  dump.put("gu-0.npy", npy_bytes("<f4", {4, 2, 8}, bytes_of(values)));
  const auto columns = [&](const std::string& word) {
    const Recording recording = dump.read("  moe_expert_gate: {from: \"gu-{layer}.npy\", columns: " + word + "}\n");
    return row_of(recording, gate, 2);
  };
  CHECK(columns("first_half") == std::vector<double>{200, 201, 202, 203, 210, 211, 212, 213});
  CHECK(columns("second_half") == std::vector<double>{204, 205, 206, 207, 214, 215, 216, 217});
  CHECK(columns("even") == std::vector<double>{200, 202, 204, 206, 210, 212, 214, 216});
  CHECK(columns("odd") == std::vector<double>{201, 203, 205, 207, 211, 213, 215, 217});
  CHECK(columns("{first: 3, count: 4}") == std::vector<double>{203, 204, 205, 206, 213, 214, 215, 216});
  CHECK_THAT(dump.refused("  moe_expert_gate: {from: \"gu-{layer}.npy\", columns: {first: 5, count: 4}}\n"),
             Contains("columns 5 to 8 of a row of 8"));
}

TEST_CASE("ranks: parts of a dimension, of fused products, and partial sums") {
  ForeignDump dump;
  dump.npy("r0/moe-0.npy", four, 4);
  dump.npy("r1/moe-0.npy", four, 4, 4);
  const std::string from = "from: \"r{tp}/moe-{layer}.npy\"";
  CHECK(row_of(dump.read("  moe_ffn_out: {" + from + ", axes: \"token hidden[tp]\"}\n"), ffn_out, 2) == made_row(2, 8));
  CHECK_THAT(dump.refused("  moe_ffn_out: {" + from + "}\n"), Contains("2 ranks have this stage"));
  dump.remove("r0");
  CHECK_THAT(dump.refused("  moe_ffn_out: {" + from + ", axes: \"token hidden[tp]\"}\n"),
             Contains("is of rank 1, and nothing is of rank 0"));
  dump.npy("r0/moe-0.npy", four, 8);
  dump.npy("r1/moe-0.npy", four, 8);
  const Recording sum = dump.read("  moe_ffn_out: {" + from + ", axes: \"token hidden[tp:sum]\"}\n");
  CHECK(row_of(sum, ffn_out, 2)[5] == 2 * made_value(2, 5));
  // q, k and v of each rank: 4, 2 and 2 of 8, 4 and 4
  const auto rank = [&](int r) {
    std::vector<float> values;
    for (const int token : four)
      for (const auto& [first, count] : {std::pair{r * 4, 4}, {8 + r * 2, 2}, {12 + r * 2, 2}})
        for (int c = 0; c < count; ++c) values.push_back(static_cast<float>(made_value(token, first + c)));
    return npy_bytes("<f4", {4, 8}, bytes_of(values));
  };
  dump.put("r0/qkv-1.npy", rank(0));
  dump.put("r1/qkv-1.npy", rank(1));
  const Recording joined = dump.read("  qkv_matmul: {from: \"r{tp}/qkv-{layer}.npy\", axes: \"token qkv[tp]\"}\n");
  CHECK(row_of(joined, qkv, 3) == made_row(3, 16));
}

TEST_CASE("rows in the order of experts are put back, padding dropped") {
  ForeignDump dump;
  // token 2 + slot of each row, two of them padding
  const std::vector<std::int32_t> order{6, 1, 8, 0, 3, 2, 7, -1, 5, 4};
  std::vector<int> rows;
  for (const std::int32_t entry : order) rows.push_back(std::max(entry, 0));
  dump.npy("gate-0.npy", rows, 4);
  dump.npy("moe-0.npy", four, 8);
  dump.ints("order-0.npy", order);
  const std::string stages =
      "  moe_expert_gate: {from: \"gate-{layer}.npy\", order: \"order-{layer}.npy\"}\n"
      "  moe_ffn_out: \"moe-{layer}.npy\"\n";
  const Recording recording = dump.read(stages);
  for (const int token : four) {
    std::vector<double> expected = made_row(token * 2, 4), second = made_row(token * 2 + 1, 4);
    expected.insert(expected.end(), second.begin(), second.end());
    CHECK(row_of(recording, gate, token) == expected);
  }
  const std::size_t header = std::filesystem::file_size(dump / "gate-0.npy") - 10 * 16;
  CHECK(recording.place(0, gate, 0)->offset == header + 3 * 16);  // entry 3 is token 0, slot 0
  dump.ints("order-0.npy", {6, 1, 8, 0, 3, 2, 7, 7, 5, 4});
  CHECK_THAT(dump.refused(stages), Contains("order-0.npy: token 3, slot 1 comes twice, expected once"));
  dump.ints("order-0.npy", {6, 1, 8, 0, 3, 2, -1, -1, 5, 4});
  CHECK_THAT(dump.refused(stages), Contains("order-0.npy: has no row of token 3, slot 1"));
  dump.ints("order-0.npy", {6, 1, 8, 0, 3, 2, 7});
  CHECK_THAT(dump.refused(stages), Contains("has 7 values of i32, expected a whole number for each of 10 rows"));
}

TEST_CASE("values without a header, names that come again, and tensors of a safetensors file") {
  ForeignDump dump;
  dump.put("moe-0.bin", std::string(12, 'x') + dump.rows(four, 8));
  const Recording raw = dump.read("  moe_ffn_out: {from: \"moe-{layer}.bin\", type: f32, skip: 12}\n");
  CHECK(row_of(raw, ffn_out, 3) == made_row(3, 8));
  CHECK(raw.place(0, ffn_out, 1)->offset == 12 + 32);
  CHECK_THAT(dump.refused("  moe_ffn_out: {from: \"moe-{layer}.bin\", type: f32, skip: 11}\n"),
             Contains("moe-0.bin: has 140 bytes"));
  CHECK_THAT(dump.refused("  moe_ffn_out: \"moe-{layer}.bin\"\n"), Contains("expected a file .npy or .safetensors"));

  dump.npy("x-0.1.npy", {8, 8, 8, 8}, 8);
  dump.npy("x-0.10.npy", four, 8);
  const auto occurrence = [&](const std::string& n) {
    return row_of(dump.read("  moe_ffn_out: {from: \"x-{layer}.{n}.npy\", n: " + n + "}\n"), ffn_out, 1)[0];
  };
  CHECK(occurrence("0") == made_value(8, 0));
  CHECK(occurrence("1") == made_value(1, 0));
  CHECK(occurrence("-1") == made_value(1, 0));
  CHECK_THAT(dump.refused("  moe_ffn_out: \"x-{layer}.{n}.npy\"\n"), Contains("say with 'n' which one"));
  CHECK_THAT(dump.refused("  moe_ffn_out: {from: \"x-{layer}.{n}.npy\", n: 2}\n"),
             Contains("n is 2, and there is 0 to 1"));

  dump.put("r.safetensors", safetensors_bytes(R"({"h.0":{"dtype":"F32","shape":[4,8],"data_offsets":[0,128]},)"
                                              R"("ids":{"dtype":"I32","shape":[4],"data_offsets":[128,144]}})",
                                              dump.rows(four, 8) + bytes_of(std::vector<std::int32_t>{1, 2, 3, 4})));
  const Recording tensors =
      dump.read("  moe_ffn_out: \"{request}.safetensors#h.{layer}\"\n", "tokens: \"{request}.safetensors#ids\"\n");
  CHECK(tensors.requests()[0].id == "r");
  CHECK(tensors.requests()[0].tokens == std::vector<std::int32_t>{1, 2, 3, 4});
  CHECK(tensors.place(0, ffn_out, 0)->tensor == "h.0");
  CHECK(tensors.engine_name(ffn_out) == std::vector<std::string>{"r.safetensors#h.0"});
  CHECK_THAT(dump.refused("  moe_ffn_out: \"{request}.safetensors\"\n"),
             Contains("has several tensors: say which one"));
  CHECK_THAT(dump.refused("  moe_ffn_out: \"x-{layer}.1.npy#h\"\n"), Contains("is one array"));
}

TEST_CASE("calls.jsonl may lie beside the files of a map") {
  ForeignDump dump;
  dump.calls({R"({"rows": 4, "tokens": [3, 1, 4, 1], "mode": "eager"})", R"({"tokens": [5], "mode": "graph"})"});
  dump.npy("moe-0.npy", {0, 1, 2, 3, 4}, 8);
  const Recording recording = dump.read("  moe_ffn_out: \"moe-{layer}.npy\"\n", "calls: calls.jsonl\n");
  CHECK(recording.calls()[1].mode == "graph");
  CHECK(rows_seen(recording, ffn_out, 0, 5) == std::vector<int>{0, 1, 2, 3, 4});
  CHECK_THAT(dump.refused("  moe_ffn_out: \"moe-{layer}.npy\"\n", "calls: calls.jsonl\ntokens: x.npy\n"),
             Contains("calls says it already"));
}

TEST_CASE("a map that does not fit is refused, with its line or with the file") {
  ForeignDump dump;
  dump.npy("moe-0.npy", four, 8);
  dump.npy("moe-3.npy", four, 8);
  dump.npy("short-0.npy", {0, 1, 2}, 8);
  dump.npy("wide-0.npy", four, 9);
  dump.put("ids-0.npy", npy_bytes("<i4", {4, 8}, std::string(128, '\1')));
  const std::vector<std::pair<std::string, std::string>> cases{
      {"  moe_ffn_out: \"moe-{layer}.npy\"\n", "moe-3.npy: is of layer 3, the model has layers 0 to 2"},
      {"  moe_ffn_out: \"no-{layer}.npy\"\n", "map.yaml:3:3: moe_ffn_out: nothing in "},
      {"  moe_ffn_out: \"moe-{layr}.npy\"\n", "map.yaml:3:16: unknown variable 'layr', did you mean 'layer'?"},
      {"  moe_ffn_out: \"moe-{layer.npy\"\n", "map.yaml:3:16: a brace without its other half"},
      {"  moe_fn_out: \"moe-{layer}.npy\"\n", "map.yaml:3:3: unknown stage 'moe_fn_out', did you mean 'moe_ffn_out'?"},
      {"  moe_ffn_out: moe-0.npy\n", "its pattern has no {layer}, and its axes no layer"},
      {"  lm_head: \"moe-{layer}.npy\"\n", "is of the whole model: it has no {layer}"},
      {"  moe_ffn_out: \"moe-{layer}.np*\"\n", "is of layer 3"},
      {"  moe_ffn_out: \"*-{layer}.npy\"\n", "are both it: make the pattern say which"},
      {"  moe_ffn_out: \"wide-{layer}.npy\"\n", "found shape [4, 9], expected [rows, 8]"},
      {"  moe_ffn_out: \"ids-{layer}.npy\"\n", "has whole numbers of type i32"},
      {
          "  moe_ffn_out: \"short-{layer}.npy\"\n  attn_out: \"wide-{layer}.npy\"\n",
          "wide-0.npy (",
      },
      {"  attn_out: \"ok-{layer}.npy\"\n  moe_ffn_out: \"short-{layer}.npy\"\n",
       "short-0.npy: has 3 rows, expected 4 of 1 calls: where it has only the last rows of a call, the map says "
       "'rows: last'"},
      {"  moe_ffn_out: {from: \"short-{layer}.npy\", axes: hidden other}\n", "has token 0 times, expected once"},
      {"  moe_ffn_out: {from: \"short-{layer}.npy\", axes: \"token hidden[dp]\"}\n", "'hidden[dp]': expected token"},
      {"  moe_ffn_out: {from: \"short-{layer}.npy\", axes: token slot hidden}\n", "the map has 3 axes"},
      {"  moe_ffn_out: {form: \"short-{layer}.npy\"}\n", "did you mean 'from'"},
      {"  moe_ffn_out: {from: \"short-{layer}.npy\", skip: 3}\n", "is of files without a header"},
      {"  moe_ffn_out: {from: \"ok-{layer}.npy\", rows: last}\n", "the map has to say tokens or positions"},
  };
  dump.npy("ok-0.npy", four, 8);
  for (const auto& [stages, message] : cases) {
    INFO(stages);
    CHECK_THAT(dump.refused(stages), Contains(message));
  }
  CHECK_THAT(dump.refused("  moe_ffn_out: \"ok-{layer}.npy\"\n", "tokens: wide-0.npy\n"),
             Contains("wide-0.npy: has f32, expected tokens as whole numbers"));
  dump.options.map = dump / "none.yaml";
  CHECK_THROWS_WITH(dump.open(), Contains("none.yaml: "));
  dump.options.map = "vlm";
  CHECK_THROWS_WITH(dump.open(), Contains("unknown map 'vlm', did you mean 'vllm'?"));
}

TEST_CASE("what is missing, or would do nothing, is refused") {
  ForeignDump dump;
  const std::string stages = "  moe_ffn_out: \"{call}/moe-{layer}.npy\"\n";
  dump.npy("0/moe-0.npy", four, 8);
  dump.npy("2/moe-0.npy", {4}, 8);
  CHECK_THAT(dump.refused(stages), Contains("2/moe-0.npy: is of call 2, and nothing is of call 1"));
  dump.ints("pos.0.npy", {0, 1, 2, 3});
  dump.ints("pos.2.npy", {7});
  CHECK(rows_seen(dump.read(stages, "positions: \"pos.{call}.npy\"\n"), ffn_out, 6, 2) == std::vector<int>{-1, 4});
  dump.ints("pos.2.npy", {1'000'000});
  CHECK_THAT(dump.refused(stages, "positions: \"pos.{call}.npy\"\n"), Contains("position 1000000: expected less than"));
  std::filesystem::create_directories(dump / "1/moe-0.npy");
  CHECK_THAT(dump.refused(stages), Contains("1/moe-0.npy has this name, and is no regular file"));
  dump.remove("1");
  dump.put("1/moe-0.npy", "");
  CHECK_THAT(dump.refused(stages), Contains("1/moe-0.npy: has 0 bytes"));

  for (const int layer : {0, 1})
    for (int rank = 0; rank < 2 - layer; ++rank) dump.npy(fmt::format("r{}/h-{}.npy", rank, layer), four, 8);
  CHECK_THAT(dump.refused("  moe_ffn_out: {from: \"r{tp}/h-{layer}.npy\", axes: \"token h[tp:sum]\"}\n"),
             Contains("r0/h-1.npy is of 1 ranks, others are of 2: a rank is missing"));
  dump.npy("x-0.npy", four, 8);
  for (const auto& [keys, message] : {std::pair{", n: 0", "n chooses among {n}"},
                                      {", layers: [0]", "are of the axis layer"},
                                      {", at: 0", "are of the axis layer"},
                                      {", axes: \"token h[ep]\"", "no pattern has {tp} or {ep}"}})
    CHECK_THAT(dump.refused(fmt::format("  moe_ffn_out: {{from: \"x-{{layer}}.npy\"{}}}\n", keys)), Contains(message));
  for (const auto& [word, message] : {std::pair{"numerics: f31\n", "unknown numerics 'f31', did you mean 'f32'?"},
                                      {"stored: vlm\n", "unknown stored 'vlm', did you mean 'vllm'?"},
                                      {"kv_cache: q9\n", "unknown kv_cache 'q9'"}})
    CHECK_THAT(dump.refused("  moe_ffn_out: \"x-{layer}.npy\"\n", word), Contains(message));
  // Many wildcards are no matter of hours.
  CHECK_THAT(dump.refused("  moe_ffn_out: \"*" + std::string(40, '*') + "b*b*b*b*b*b*{layer}*b*b*b.npy\"\n"),
             Contains("nothing in "));
}

TEST_CASE("the map of vLLM reads extracted hidden states and routed experts") {
  ForeignDump dump;
  dump.options.map = "vllm";
  std::vector<float> values;
  std::vector<std::int16_t> ids;
  for (const int token : four)
    for (int number = 0; number < 4; ++number)
      for (int c = 0; c < 8; ++c) values.push_back(static_cast<float>(made_value(token * 10 + number, c)));
  for (int i = 0; i < 4 * 3; ++i) ids.insert(ids.end(), {static_cast<std::int16_t>(i % 5), 5});
  dump.put("req-1.safetensors",
           safetensors_bytes(R"({"hidden_states":{"dtype":"F32","shape":[4,4,8],"data_offsets":[0,512]},)"
                             R"("token_ids":{"dtype":"I32","shape":[5],"data_offsets":[512,532]}})",
                             bytes_of(values) + bytes_of(std::vector<std::int32_t>{1, 2, 3, 4, 9})));
  dump.put("req-1.routed_experts.npy", npy_bytes("<i2", {4, 3, 2}, bytes_of(ids)));
  const Recording recording = dump.open();
  CHECK(recording.layout() == "map vllm");
  CHECK(recording.requests()[0].tokens == std::vector<std::int32_t>{1, 2, 3, 4});
  CHECK(row_of(recording, residual, 1) == made_row(13, 8));
  CHECK(row_of(recording, {stages::moe_router_indices, 2}, 3) == std::vector<double>{1, 5});
}

TEST_CASE("every known map can be read, and is printed as it is") {
  for (const KnownMap& map : known_maps()) {
    INFO(map.name);
    const DumpMap read = dump_map(map.name, qwen3moe.stages);
    CHECK(!read.stages.empty());
    CHECK(read.file == "map " + map.name);
    CHECK(DumpMap::parse(known_map_text(map.name, qwen3moe.stages), "").stages.size() == read.stages.size());
  }
}

}  // namespace moe_diag
