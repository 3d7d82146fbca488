// SPDX-License-Identifier: MIT
// Whatever a byte of a dump is changed to, the dump is read or refused: only an Error comes out, and every row that it
// then has can be read.
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "tests/support/catch.hpp"
#include "tests/unit/recording/made_dump.hpp"

namespace moe_diag {
namespace {

// Reads all rows; true when the dump was read.
bool read_all(const MadeDump& dump) {
  try {
    const Recording recording = dump.open();
    std::vector<std::byte> memory;
    double sum = 0;
    for (int r = 0; r < static_cast<int>(recording.requests().size()); ++r)
      for (const RecordedCall& call : recording.calls())
        for (const Site& site : recording.sites()) {
          const Tensor rows = recording.rows(r, site, {call.first, call.rows}, memory);
          for (std::int64_t i = 0; rows && i < rows.shape.count(); ++i) sum += rows.value(i);
          if (const auto place = recording.place(r, site, call.first))
            CHECK(place->offset + static_cast<std::uint64_t>(rows.bytes() / static_cast<std::size_t>(call.rows)) <=
                  std::filesystem::file_size(place->file));
        }
    return sum != 0.125;  // so that no read is left out
  } catch (const Error& e) {
    CHECK(*e.what() != '\0');
    return false;
  }
}

// Changes bytes in place: some file systems flush a file that is written anew.
void put_byte(const std::string& path, std::size_t at, char byte) {
  std::fstream file(path, std::ios::binary | std::ios::in | std::ios::out);
  file.seekp(static_cast<std::streamoff>(at));
  file.put(byte);
}

// How many of the changes of a file are read all the same: of each byte, and the file cut before it.
int changed(const MadeDump& dump, const std::string& name) {
  const std::string path = dump / name, sound = read_text(path);
  int read = 0;
  for (std::size_t i = 0; i < sound.size(); ++i) {
    for (const char to : {'\0', '9', '"', ',', static_cast<char>(sound[i] ^ 1), static_cast<char>(sound[i] ^ 0x80)}) {
      put_byte(path, i, to);
      read += read_all(dump) ? 1 : 0;
    }
    put_byte(path, i, sound[i]);
  }
  for (std::size_t size = sound.size(); size-- > 0;) {
    std::filesystem::resize_file(path, size);
    read += read_all(dump) ? 1 : 0;
  }
  dump.put(name, sound);
  return read;
}

}  // namespace

TEST_CASE("a dump of npy arrays with a byte changed is read or refused") {
  for (const bool is_cut : {false, true}) {
    MadeDump dump;
    dump.head(is_cut ? "" : R"(, "closed": true, "calls": 2)");
    dump.calls({R"({"request": "r0", "first": 0, "rows": 2, "tokens": [1, 2], "recorded": {"lm_head": 1}})",
                R"({"parts": [{"request": "r0", "positions": [2]}, {"rows": 2, "first": 7}], "padding": 1})"});
    dump.array("layer_01/moe_router_indices", {0, 1, 2, 3, 4}, is_cut ? ".npy.part" : ".npy");
    dump.options.cut_ok = is_cut;
    REQUIRE(read_all(dump));
    const std::string array = std::string("layer_01/moe_router_indices.npy") + (is_cut ? ".part" : "");
    CHECK(changed(dump, "dump.json") > 0);
    CHECK(changed(dump, "calls.jsonl") > 0);
    CHECK(changed(dump, array) > 0);
  }
}

TEST_CASE("a dump of safetensors files with a byte changed is read or refused") {
  MadeDump dump;
  dump.head();
  dump.calls({R"({"rows": 2})"});
  dump.put("call_00000.safetensors",
           safetensors_bytes(R"({"final_norm":{"dtype":"F32","shape":[2,8],"data_offsets":[0,64]}})",
                             bytes_of(std::vector<float>(16, 1))));
  REQUIRE(read_all(dump));
  CHECK(changed(dump, "call_00000.safetensors") > 0);
}

TEST_CASE("a capture with a byte of its manifest changed is read or refused") {
  MadeDump dump;
  dump.array("layer_00/moe_ffn_out", {0, 1});
  dump.put("manifest.json",
           R"({"format": "moe-diag capture", "lanes": [{"name": "f32"}], "prompts": [{"id": "a", "tokens": [1, 2], )"
           R"("generated": 1}], "tensors": [{"prompt": "a", "lane": "f32", "stage": "moe_ffn_out", "layer": 0, )"
           R"("positions": [0, 1], "file": "layer_00/moe_ffn_out.npy"}]})");
  REQUIRE(read_all(dump));
  CHECK(changed(dump, "manifest.json") > 0);
}

}  // namespace moe_diag
