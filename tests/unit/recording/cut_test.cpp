// SPDX-License-Identifier: MIT
// Dumps whose engine died.
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

const Site ffn_out{stages::moe_ffn_out, 0}, head{stages::lm_head, -1};

const std::string prompt = R"({"request": "r0", "first": 0, "rows": 3, "tokens": [1, 2, 3]})";
const std::string decoded = R"({"request": "r0", "tokens": [4]})";

// Three calls, written as an engine does: rows first, then the line; the last call is not complete.
void make_cut(MadeDump& dump) {
  dump.head("");
  dump.calls({prompt, decoded, decoded});
  dump.array("layer_00/moe_ffn_out", {0, 1, 2, 3, 4}, ".npy.part");
  dump.array("lm_head", {0, 1, 2, 3}, ".npy.part");
  dump.options.cut_ok = true;
}

std::string safetensor(const std::string& name, int rows, float value) {
  const std::string header = R"({")" + name + R"(":{"dtype":"F32","shape":[)" + std::to_string(rows) +
                             R"(,8],"data_offsets":[0,)" + std::to_string(rows * 32) + "]}}";
  return safetensors_bytes(header, bytes_of(std::vector<float>(static_cast<std::size_t>(rows) * 8, value)));
}

}  // namespace

TEST_CASE("a dump that was cut has its complete calls, where that is taken") {
  MadeDump dump;
  make_cut(dump);
  const Recording recording = dump.open();
  CHECK(recording.calls().size() == 2);
  CHECK(recording.cut_at() == "call 1 of request r0, behind position 3");
  CHECK(rows_seen(recording, ffn_out, 0, 5) == std::vector<int>{0, 1, 2, 3, -1});
  CHECK(recording.engine_name(ffn_out)[0] == "layer_00/moe_ffn_out.npy");
  dump.options.cut_ok = false;
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("With --cut-ok its complete calls are judged"));
}

TEST_CASE("the rows of a file that is being written are counted by its size") {
  MadeDump dump;
  make_cut(dump);
  const std::string header = npy_header("<f4", {0, 8}), row(32, '\1');
  dump.put("layer_00/moe_ffn_out.npy.part", header + row + row + row + row + row.substr(9));
  CHECK(dump.open().calls().size() == 2);
  dump.put("layer_00/moe_ffn_out.npy.part", header + row + row + row + row.substr(9));
  CHECK(dump.open().cut_at() == "call 0 of request r0, behind position 2");
  dump.put("layer_00/moe_ffn_out.npy.part", header + row + row);
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("none of its calls is complete: nothing can be judged"));
  dump.put("layer_00/moe_ffn_out.npy.part", "");
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("moe_ffn_out.npy.part: has 0 bytes"));
}

TEST_CASE("a line without its newline is not there yet") {
  MadeDump dump;
  make_cut(dump);
  dump.put("calls.jsonl", prompt + '\n' + decoded);
  CHECK(dump.open().calls().size() == 1);
  dump.put("calls.jsonl", prompt + '\n' + decoded.substr(0, 12));
  CHECK(dump.open().calls().size() == 1);
  dump.put("calls.jsonl", prompt + '\n' + decoded.substr(0, 12) + '\n');
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("calls.jsonl:2 (call 1): no JSON"));
  dump.put("calls.jsonl", "");
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("none of its calls is complete"));
}

TEST_CASE("a dump that died while it was closed has arrays of both names") {
  MadeDump dump;
  make_cut(dump);
  dump.remove("lm_head.npy.part");
  dump.array("lm_head", {0, 1, 2, 3, 4});
  CHECK(dump.open().cut_at() == "call 2 of request r0, behind position 4");
  dump.array("lm_head", {0, 1, 2}, ".npy.part");
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("lm_head has two arrays"));
}

TEST_CASE("a cut dump of a file for each call ends before the first that is not whole") {
  MadeDump dump;
  dump.head("");
  dump.options.cut_ok = true;
  dump.calls({prompt, decoded, decoded});
  const std::string name = "layer_00/moe_ffn_out";
  dump.put("call_00000.safetensors", safetensor(name, 3, 1));
  dump.put("call_00001.safetensors", safetensor(name, 1, 2));
  CHECK(dump.open().calls().size() == 2);
  dump.put("call_00002.safetensors", safetensor(name, 1, 3).substr(0, 90));
  CHECK(dump.open().calls().size() == 2);
  dump.put("call_00002.safetensors", safetensor(name, 1, 3));
  CHECK(dump.open().calls().size() == 3);
  dump.put("call_00003.safetensors", safetensor(name, 1, 4));  // its line was not written
  CHECK(dump.open().calls().size() == 3);
  dump.put("call_00001.safetensors", "");
  CHECK(dump.open().cut_at() == "call 0 of request r0, behind position 2");
  dump.remove("call_00001.safetensors");
  CHECK(dump.open().calls().size() == 1);
  dump.remove("call_00000.safetensors");
  CHECK_THAT(dump.refusal(), Catch::Matchers::Contains("none of its calls is complete"));
}

}  // namespace moe_diag
