// SPDX-License-Identifier: MIT
// Every reason for which a dump is refused, planted in one that is read.
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

struct Planted {
  std::function<void(MadeDump&)> plant;
  std::string expected;  // part of the message
};

const std::string ffn = "layer_00/moe_ffn_out", ffn_npy = ffn + ".npy", ids_npy = "layer_00/moe_router_indices.npy";

void check_all(const std::vector<Planted>& cases) {
  for (const Planted& planted : cases) {
    CAPTURE(planted.expected);
    MadeDump dump;
    make_sound(dump);
    planted.plant(dump);
    CHECK_THAT(dump.refusal(), Catch::Matchers::Contains(planted.expected));
  }
}

// The sound dump with one line of calls.jsonl replaced.
std::function<void(MadeDump&)> line(const std::string& text) {
  return [text](MadeDump& dump) {
    dump.calls(
        {R"({"request": "r0", "rows": 4, "tokens": [3, 1, 4, 1]})", text, R"({"request": "r0", "tokens": [9]})"});
  };
}

std::function<void(MadeDump&)> floats(const Shape& shape, const std::string& name = ffn_npy) {
  return [shape, name](MadeDump& dump) {
    std::vector<float> values(static_cast<std::size_t>(shape.count()));
    for (std::size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i + 1);
    dump.put(name, npy_bytes("<f4", shape, bytes_of(values)));
  };
}

// An array with that header and so many bytes of data.
std::function<void(MadeDump&)> header(const std::string& text, std::size_t bytes = 0) {
  return [text, bytes](MadeDump& dump) {
    dump.put(ffn_npy, std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(text.size()) + '\0' + text +
                          std::string(bytes, '\1'));
  };
}

std::function<void(MadeDump&)> ids_of(const std::vector<std::int32_t>& values) {
  return [values](MadeDump& dump) {
    dump.put(ids_npy, npy_bytes("<i4", {static_cast<std::int64_t>(values.size() / 2), 2}, bytes_of(values)));
  };
}

}  // namespace

TEST_CASE("a folder that is no whole recording is refused") {
  check_all({
      {[](MadeDump& d) { d.remove(""); }, "dump: there is no such recording"},
      {[](MadeDump& d) { d.remove("dump.json"); }, "it has neither dump.json, with which a dump in the native layout"},
      {[](MadeDump& d) {
         d.remove("dump.json");
         d.put("incomplete", "");
       },
       "a capture that is not complete"},
      {[](MadeDump& d) { d.put("manifest.json", "{}"); },
       "has dump.json and manifest.json, expected a dump or a capture"},
      {[](MadeDump& d) { d.head(""); }, "the dump was cut: its dump.json has no \"closed\": true"},
      {[](MadeDump& d) { d.head(R"(, "closed": false)"); }, "the dump was cut"},
      {[](MadeDump& d) { d.head(R"(, "closed": true, "calls": 4)"); },
       "calls.jsonl: has 3 lines, dump.json says 4 calls"},
      {[](MadeDump& d) { d.array("layer_01/moe_ffn_out", {0}, ".npy.part"); },
       "layer_01/moe_ffn_out.npy.part: was still being written, while dump.json says that the dump is closed"},
      {[](MadeDump& d) { d.head(R"(, "closde": true)"); }, "unknown key 'closde', did you mean 'closed'?"},
      {[](MadeDump& d) { d.head(R"(, "closed": true, "closed": true)"); }, "names 'closed' twice"},
      {[](MadeDump& d) { d.head(R"(, "closed": 1)"); }, "closed: expected true or false, found 1"},
      {[](MadeDump& d) { d.head(R"(, "closed": true, "calls": -1)"); },
       "calls: expected a whole number from 0 on, found -1"},
      {[](MadeDump& d) { d.head(R"(, "numerics": 16)"); }, "numerics: expected text, found 16"},
      {[](MadeDump& d) { d.head(R"(, "closed": true, "bf16_as": "u4")"); }, "bf16_as: expected \"u2\", found \"u4\""},
      {[](MadeDump& d) { d.put("dump.json", "{"); }, "dump.json: no JSON: it begins with '{'"},
      {[](MadeDump& d) { d.put("dump.json", ""); }, "dump.json: no JSON"},
      {[](MadeDump& d) { d.put("dump.json", "[1]"); }, "dump.json: expected a JSON object, found [1]"},
      {[](MadeDump& d) { d.put("dump.json", "[[[[[[[[[[1]]]]]]]]]]"); }, "dump.json: nested more than 8 deep"},
      {[](MadeDump& d) { d.put("dump.json", R"({"format": "other", "version": 1})"); },
       "expected \"format\": \"moe-diag dump\", found \"other\""},
      {[](MadeDump& d) { d.put("dump.json", R"({"version": 1})"); }, "found none"},
      {[](MadeDump& d) { d.put("dump.json", R"({"format": "moe-diag dump"})"); }, "has no version, expected 1"},
      {[](MadeDump& d) { d.put("dump.json", R"({"format": "moe-diag dump", "version": 2})"); },
       "version: expected a whole number, 1 to 1, found 2"},
  });
}

TEST_CASE("files that belong to no dump are refused, and notes are not") {
  check_all({
      {[](MadeDump& d) { d.put("layer_00/moe_fn_out.npy", ""); },
       "layer_00/moe_fn_out.npy: unknown stage 'moe_fn_out', did you mean 'moe_ffn_out'?"},
      {[](MadeDump& d) { d.put("moe_ffn_out.npy", ""); },
       "moe_ffn_out is a stage of a layer, expected layer_00/moe_ffn_out"},
      {[](MadeDump& d) { d.put("layer_00/lm_head.npy", ""); }, "lm_head is a stage of the whole model"},
      {[](MadeDump& d) { d.put("layer_03/moe_ffn_out.npy", ""); }, "layer 3: the model has layers 0 to 2"},
      {[](MadeDump& d) { d.put("layer_0/attn_norm.npy", ""); }, "layer 0 has two folders, the other is layer_0"},
      {[](MadeDump& d) { d.put("layer00/moe_ffn_out.npy", ""); },
       "layer00: no folder of a dump, expected layer_00 to layer_02"},
      {[](MadeDump& d) { d.put("layer_02/layer_output.npy", ""); }, "layer 2, post_ffn_residual has two arrays"},
      {[](MadeDump& d) { d.put("call_00000.safetensors", ""); },
       "expected npy arrays or a safetensors file for each call, not both"},
      {[](MadeDump& d) { d.put("all.safetensors", ""); },
       "all.safetensors: expected a file for each call, call_00000.safetensors"},
      {[](MadeDump& d) {
         for (const std::string& name : made_stages) d.remove(name + ".npy");
       },
       "the dump has no array, expected <stage>.npy and layer_07/<stage>.npy, or call_00000.safetensors"},
  });
  MadeDump dump;
  make_sound(dump);
  dump.put("README.md", "a note");
  dump.put(".hidden/x", "");
  CHECK(dump.refusal().empty());
}

TEST_CASE("lines of calls.jsonl that contradict themselves are refused") {
  check_all({
      {[](MadeDump& d) { d.remove("calls.jsonl"); },
       "calls.jsonl: there is no such file: expected a line for each call"},
      {[](MadeDump& d) { d.put("calls.jsonl", ""); }, "calls.jsonl: has no line"},
      {line(""), "calls.jsonl:2 (call 1): the line is empty"},
      {line("{"), "calls.jsonl:2 (call 1): no JSON: it begins with '{'"},
      {line(R"({"tokns": [5]})"), "calls.jsonl:2 (call 1): unknown key 'tokns', did you mean 'tokens'?"},
      {line(R"({"tokens": [5], "tokens": [6]})"), "calls.jsonl:2 (call 1): names 'tokens' twice"},
      {line(R"({"tokens": [-5]})"), "tokens[0]: expected a whole number from 0 on, found -5"},
      {line(R"({"tokens": [5.5]})"), "tokens[0]: expected a whole number from 0 on, found 5.5"},
      {line(R"({"tokens": "5"})"), "tokens: expected a list of whole numbers, found \"5\""},
      {line(R"({"request": "r0", "tokens": [32]})"),
       "token 32 at position 4: the model's vocabulary has 32, numbered 0 to 31; is the recording of another model?"},
      {line(R"({"rows": 0})"), "rows: expected a whole number from 1 on, found 0"},
      {line(R"({"rows": -1})"), "rows: expected a whole number from 1 on, found -1"},
      {line(R"({"rows": 1e3})"), "rows: expected a whole number from 1 on, found 1000.0"},
      {line(R"({"rows": 4294967297})"), "rows: expected a whole number from 1 on, found 4294967297"},
      {line(R"({"rows": 99999999999999999999999})"), "rows: expected a whole number from 1 on"},
      {line(R"({"first": 2147483647, "rows": 1})"), "1 rows from position 2147483647 on: expected positions up to"},
      {line(R"({"first": -1, "rows": 1})"), "first: expected a whole number from 0 on, found -1"},
      {line(R"({"request": "r0"})"), "has no rows: expected tokens, positions or rows"},
      {line(R"({"tokens": []})"), "has no rows"},
      {line(R"({"request": "", "rows": 1})"), "request: is empty"},
      {line(R"({"request": 7, "rows": 1})"), "request: expected text, found 7"},
      {line(R"({"rows": 2, "tokens": [1]})"), "tokens: found 1, expected one for each of 2 rows"},
      {line(R"({"rows": 1, "positions": [1, 2]})"), "positions: found 2, expected one for each of 1 rows"},
      {line(R"({"first": 1, "positions": [4]})"), "has first and positions, expected one of them"},
      {line(R"({"positions": [5, 4]})"), "positions: 4 stands behind 5, expected ascending positions within a call"},
      {line(R"({"positions": [4, 4]})"), "positions: 4 stands behind 4"},
      {line(R"({"parts": []})"), "parts: has none"},
      {line(R"({"parts": 3})"), "parts: expected a list of objects, found 3"},
      {line(R"({"parts": [3]})"), "parts[0]: expected a JSON object, found 3"},
      {line(R"({"parts": [{"rows": 1, "mode": "x"}]})"), "parts[0]: unknown key 'mode'"},
      {line(R"({"parts": [{"rows": 1}], "rows": 1})"), "has parts and rows: rows belongs to each part"},
      {line(R"({"parts": [{"rows": 2}, {"first": 1, "rows": 2}]})"), "position 1 of request 0 comes twice in the call"},
      {line(R"({"parts": [{"rows": 2000000000}, {"request": "b", "rows": 2000000000}]})"),
       "has 4000000000 rows, expected at most"},
      {line(R"({"rows": 2, "padding": 2})"), "padding: 2 of 2 rows: expected fewer"},
      {line(R"({"rows": 2, "padding": -2})"), "padding: expected a whole number from 0 on, found -2"},
      {line(R"({"rows": 2, "recorded": 3})"), "recorded: 1 rows more than the call has"},
      {line(R"({"rows": 2, "recorded": {"lm_head": 3}})"), "recorded: 1 rows more than the call has"},
      {line(R"({"rows": 2, "recorded": {"lm_haed": 1}})"), "unknown stage 'lm_haed', did you mean 'lm_head'?"},
      {line(R"({"rows": 2, "recorded": {"layer_output": 1, "post_ffn_residual": 1}})"), "the same stage is said twice"},
      {line(R"({"rows": 2, "recorded": {"layer_09/moe_ffn_out": 1}})"), "layer 9: the model has layers 0 to 2"},
      {line(R"({"rows": 2, "recorded": "all"})"), "recorded: expected a whole number"},
      {line(R"({"rows": 1, "rank": -3})"), "rank: expected a whole number from 0 on, found -3"},
      {line(R"({"rows": 1, "mode": 3})"), "mode: expected text, found 3"},
  });
}

TEST_CASE("an array that has not the rows of the calls is refused with the likely reason") {
  check_all({
      {[](MadeDump& d) { d.array(ffn, {5}); },
       "moe_ffn_out.npy: has 1 rows, expected 6 of 3 calls: overwritten calls: these are the rows of the last call "
       "only"},
      {[](MadeDump& d) {
         d.array(ffn, {0, 1, 2, 3});
       },
       "the rows of the first call only: later calls were not recorded"},
      {[](MadeDump& d) {
         d.array(ffn, {3, 4, 5});
       },
       R"(one row for each call? Its line says then "recorded": {"moe_ffn_out": 1})"},
      {[](MadeDump& d) {
         d.array(ffn, {0, 1, 2, 3, 4});
       },
       "they end within call 2; a stage that has not all rows"},
      {[](MadeDump& d) {
         d.array(ffn, {0, 1});
       },
       "they end within call 0"},
      {[](MadeDump& d) {
         d.array(ffn, {0, 1, 2, 3, 4, 5, 6});
       },
       "rows of calls that calls.jsonl does not list"},
      {[](MadeDump& d) {
         d.array(ffn, {0, 1, 2, 3, 4, 4, 4, 4, 4, 4, 4, 4, 5});
       },
       "has 13 rows, expected 6 of 3 calls: rows of padding up to graph_size? Count them in rows, and say padding"},
      {[](MadeDump& d) {
         line(R"({"request": "r0", "rows": 3, "padding": 2})")(d);
         for (const std::string& name : made_stages) d.array(name, {0, 1, 2, 3, 4, 4, 4, 5, 6, 7});
       },
       "expected 8 of 3 calls: rows of padding are counted in the rows of a call"},
  });
}

TEST_CASE("rows of another size are refused with the likely reason") {
  check_all({
      {floats({6, 4}),
       "found shape [6, 4], expected [rows, 8]: a half of a row: the shard of one of 2 tensor-parallel ranks"},
      {floats({6, 2}), "a 4th of a row: the shard of one of 4 tensor-parallel ranks, read as whole?"},
      {floats({6, 16}), "twice a row: two tensors side by side"},
      {floats({6, 7}), "rows come first, and each has the shape that `moe-diag stages` says"},
      {floats({1, 6, 8}), "a batch dimension in front: leave it out"},
      {floats({48}), "a flat array: give it the shape [6, 8]"},
      {floats({8, 6}), "transposed: rows come first"},
      {floats({12, 8}, "layer_00/moe_expert_out.npy"), "a row for each slot: give it the shape [6, 2, 8]"},
      {floats({6, 3, 8}, "layer_00/moe_expert_out.npy"), "a fused shared expert?"},
      {floats({6, 3}, "layer_00/attn_scores.npy"), "found shape [6, 3], expected [rows, 2, keys]"},
      {floats({6, 2}, ids_npy), "has values of f32, expected ids of experts as whole numbers: write them as int32"},
      {[](MadeDump& d) {
         d.put(ffn_npy, npy_bytes("<i4", {6, 8}, std::string(192, '\1')));
       },
       "has whole numbers of type i32, expected f64, f32, f16 or bf16"},
      {[](MadeDump& d) {
         d.put(ffn_npy, npy_bytes("<u2", {6, 8}, std::string(96, '\1')));
       },
       "for bits of bf16, dump.json says \"bf16_as\": \"u2\""},
  });
}

TEST_CASE("headers of npy that are not sound are refused") {
  const std::string sound = "{'descr': '<f4', 'fortran_order': False, 'shape': (6, 8), }";
  const auto of = [](const std::string& descr, const std::string& order, const std::string& shape) {
    return "{'descr': '" + descr + "', 'fortran_order': " + order + ", 'shape': " + shape + "}";
  };
  check_all({
      {[](MadeDump& d) { d.put(ffn_npy, ""); }, "moe_ffn_out.npy: has 0 bytes, expected an array"},
      {[](MadeDump& d) { d.put(ffn_npy, "\x93NUMPY"); }, "moe_ffn_out.npy: not an .npy file"},
      {[](MadeDump& d) { d.put(ffn_npy, std::string("\x93NUMPY\x01\x00\xff\x00{'descr'", 18)); },
       "it ends within its header"},
      {[](MadeDump& d) { d.put(ffn_npy, std::string("\x93NUMPY\x02\x00\xff\xff\xff\xff{'descr'", 20)); },
       "it ends within its header"},
      {[](MadeDump& d) { d.put(ffn_npy, std::string("\x93NUMPY\x09\x00\x01\x00{'descr'", 18)); },
       "version 9 of the .npy format"},
      {header("{'fortran_order': False, 'shape': (6, 8)}"), "its header has no descr as numpy writes it"},
      {header(of("<f4", "True", "(6, 8)"), 192), "it is in Fortran order, expected C order"},
      {header(of(">f4", "False", "(6, 8)"), 192), "its type is '>f4', big-endian; expected little-endian"},
      {header(of("<c8", "False", "(6, 8)"), 384), "its type is '<c8', expected one of f4, f8, f2, V2 (bf16)"},
      {header(of("|O", "False", "(6, 8)"), 384), "its type is '|O', expected one of"},
      {header(of("<f4", "False", "()"), 4), "a single value, expected an array [rows, ...]"},
      {header(of("<f4", "False", "(6, 0)")), "rows of 0 bytes"},
      {header(of("<f4", "False", "(-6, 8)"), 192), "its shape is (-6, 8), which is none"},
      {header(of("<f4", "False", "(6, 8)"), 191), "its header announces 6 rows of 32 bytes, 191 bytes follow"},
      {header(of("<f4", "False", "(6, 8)"), 193), "its header announces 6 rows of 32 bytes, 193 bytes follow"},
      {header(of("<f4", "False", "(576460752303423494, 8)"), 192), "announces 576460752303423494 rows"},
      {header(of("<f4", "False", "(6, 4611686018427387904)"), 192), "rows of too many bytes"},
      {header(of("<f4", "False", "(6, 99999999999999999999)"), 192), "which is none"},
      {[](MadeDump& d) {
         d.remove(ffn_npy);
         d.put(ffn_npy + "/x", "");
       },
       "is a folder, expected a file"},
  });
  MadeDump dump;
  make_sound(dump);
  header(sound, 192)(dump);
  CHECK(dump.refusal().empty());
}

TEST_CASE("ids that no router chose are refused") {
  check_all({
      {ids_of({0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 6}),
       "moe_router_indices.npy: row 0 of call 2 (position 5) has the ids 4, 6, expected 0 to 5: a fused shared "
       "expert?"},
      {ids_of({0, 7, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}),
       "has the ids 0, 7, expected 0 to 5: physical ids of a load balancer"},
      {ids_of({0, -1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5}), "experts of other ranks, masked?"},
      {ids_of({0, 1, 2, 2, 4, 5, 0, 1, 2, 3, 4, 5}),
       "row 1 of call 0 (position 1) has the ids 2, 2, expected each once"},
      {ids_of({1, 1, 2, 2, 3, 3, 4, 4, 0, 1, 2, 3}), "expected each once: transposed? As [slots, rows]"},
      {ids_of(std::vector<std::int32_t>(12, 0)),
       "every id is 0, in all of 3 calls: was it copied before it was written?"},
      {ids_of({0, 1, 2, 3, 4, 5, 0, 1, 0, 0, 4, 5}), "every id of call 1 is 0, those of other calls are not"},
      {[](MadeDump& d) {
         d.put(ids_npy, npy_bytes("<i8", {6, 2}, bytes_of(std::vector<std::int64_t>(12, std::int64_t{1} << 40))));
       },
       "has the ids 1099511627776, 1099511627776, expected 0 to 5"},
      {[](MadeDump& d) {
         d.put(ids_npy, npy_bytes("<u4", {6, 2}, bytes_of(std::vector<std::uint32_t>(12, 0xFFFFFFFF))));
       },
       "has the ids 4294967295, 4294967295, expected 0 to 5"},
  });
}

TEST_CASE("rows of zeros are refused, and read where they are said to be what the engine computed") {
  const auto zeros = [](const std::vector<int>& rows, const std::string& name = ffn_npy) {
    return [rows, name](MadeDump& dump) {
      std::vector<float> values(48, 1);
      for (const int row : rows) std::fill_n(values.begin() + row * 8, 8, row % 2 ? 0.0f : -0.0f);
      dump.put(name, npy_bytes("<f4", {6, 8}, bytes_of(values)));
    };
  };
  const std::string norm = "layer_00/ffn_norm.npy";
  check_all({
      {zeros({0, 1, 2, 3, 4, 5}), "moe_ffn_out.npy: every row that was looked at is 0, in all of 3 calls"},
      {zeros({4}, norm), "the rows of call 1 are 0, those of other calls are not: was it copied in that call?"},
      {zeros({2, 3}, norm), "row 3 of call 0, its last, is 0 and the first is not: padding?"},
      {zeros({0}, norm), "row 0 of call 0, its first, is 0 and the last is not"},
      {zeros({0, 1, 2, 3, 4, 5}, "embedding.npy"), "embedding.npy: every row that was looked at is 0"},
  });
  MadeDump dump;
  make_sound(dump);
  zeros({4}, "embedding.npy")(dump);
  CHECK(dump.refusal().empty());  // a token that was never trained
  zeros({4})(dump);
  CHECK(dump.refusal().empty());  // experts that an engine lost: that is judged
  zeros({4}, norm)(dump);
  dump.options.zeros_ok = true;
  CHECK(dump.refusal().empty());
  dump.options.zeros_ok = false;
  dump.put(norm, npy_bytes("<f4", {6, 8}, bytes_of(std::vector<float>(48, 1))));
  std::vector<float> values(48, 1);
  values[33] = std::nanf("");
  for (int i = 40; i < 48; ++i) values[static_cast<std::size_t>(i)] = INFINITY;
  dump.put(ffn_npy, npy_bytes("<f4", {6, 8}, bytes_of(values)));
  CHECK(dump.refusal().empty());  // values that are not finite are what people look for
}

}  // namespace moe_diag
