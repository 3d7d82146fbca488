// SPDX-License-Identifier: MIT
// Split models: their parts are written by the gguf package.
#include <algorithm>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "core/api/error.hpp"
#include "core/gguf/split_files.hpp"
#include "core/model/model.hpp"
#include "tests/support/catch.hpp"
#include "tests/support/gate.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;
using Catch::Matchers::Contains;
using Catch::Matchers::StartsWith;

// A model in one file, whole.gguf, and in parts of at most 20 tensors.
struct SplitModel {
  explicit SplitModel(const std::string& more = "") {
    write_synthetic({"tiny", 0, "q4_k_m", 7}, folder / "whole.gguf");
    const Finished made =
        run_command(quoted(MOE_DIAG_PYTHON) + " " + quoted(MOE_DIAG_SOURCE_DIR "/tests/unit/model/split_with_gguf.py") +
                    " " + quoted(folder / "whole.gguf") + " " + quoted(folder / "m.gguf") + " 20 " + more);
    INFO(made.err);
    REQUIRE(made.code == 0);
    for (std::size_t at = 0, end = 0; (end = made.out.find('\n', at)) != std::string::npos; at = end + 1)
      parts.push_back(made.out.substr(at, end - at));
  }
  // What opening a part says.
  std::string refusal(std::size_t part = 0) const {
    try {
      Model::open(parts[part]);
    } catch (const Error& e) {
      return (e.kind() == ErrorKind::absent ? "absent: " : "") + std::string(e.what());
    }
    return "";
  }
  // Writes bytes over those after a key's name and type.
  void set_number(std::size_t part, const std::string& key, const std::string& bytes) const {
    std::string text = read_text(parts[part]);
    const std::size_t at = text.find(key);
    REQUIRE(at != std::string::npos);
    text.replace(at + key.size() + 4, bytes.size(), bytes);
    write_text(parts[part], text);
  }

  TemporaryFolder folder;
  std::vector<std::string> parts;
};

void check_same_weights(const Model& split, const Model& whole) {
  REQUIRE(split.view().weights.size() == whole.view().weights.size());
  for (const Weight& w : whole.view().weights) {
    INFO(w.name);
    const auto other = std::find_if(split.view().weights.begin(), split.view().weights.end(),
                                    [&](const Weight& o) { return o.name == w.name; });
    REQUIRE(other != split.view().weights.end());
    CHECK(other->type == w.type);
    CHECK(std::memcmp(other->data, w.data, w.bytes()) == 0);
  }
}

}  // namespace

TEST_CASE("the name of a part gives those of all, and other names none") {
  CHECK(split_parts("d/m-00002-of-00003.gguf") ==
        std::vector<std::string>{"d/m-00001-of-00003.gguf", "d/m-00002-of-00003.gguf", "d/m-00003-of-00003.gguf"});
  for (const char* name :
       {"m.gguf", "m-00000-of-00003.gguf", "m-00004-of-00003.gguf", "m-0001-of-00003.gguf", "m-0000a-of-00003.gguf",
        "-00001-of-00003.gguf", "m-00001-of-00003", "m-00001-of-99999.gguf", "m-+0001-of-00003.gguf"})
    CHECK(split_parts(name).empty());
}

TEST_CASE("a split model opens by any of its parts, and is the model that was split") {
  for (const char* more : {"", "first"}) {
    const SplitModel made(more);
    REQUIRE(made.parts.size() == (*more ? 4 : 3));
    const Model whole = Model::open(made.folder / "whole.gguf");
    std::string digest;
    for (const std::string& part : made.parts) {
      const Model split = Model::open(part);
      check_same_weights(split, whole);
      CHECK(split.files() == made.parts);
      CHECK(split.source() == part);
      CHECK((digest.empty() || split.digest() == digest));
      digest = split.digest();
      std::uint64_t bytes = 0;
      for (const std::string& file : made.parts) bytes += fs::file_size(file);
      CHECK(split.bytes() == bytes);
      for (const Weight& weight : split.view().weights) {
        const auto [file, offset] = split.place_of(weight);
        const std::string text = read_text(made.parts[file]);
        REQUIRE(offset + weight.bytes() <= text.size());
        CHECK(std::memcmp(text.data() + offset, weight.data, weight.bytes()) == 0);
      }
    }
  }
}

TEST_CASE("a byte of any part is in the digest, and none is remembered that changed") {
  const SplitModel made;
  const std::string digest = Model::open(made.parts[0]).digest();
  std::string last = read_text(made.parts[2]);
  last.back() = static_cast<char>(last.back() ^ 1);
  write_text(made.parts[2], last);
  CHECK(Model::open(made.parts[0]).digest() != digest);
}

TEST_CASE("parts that are missing, or of another model, are named") {
  const auto absent = [](std::size_t part) {
    const SplitModel made;
    fs::remove(made.parts[part]);
    return std::pair(made.refusal(part == 0 ? 1 : 0), made.parts[part]);
  };
  for (const std::size_t part : {0, 1, 2}) {
    const auto [refusal, path] = absent(part);
    CHECK(refusal ==
          "absent: " + path + ": there is no such file (part " + std::to_string(part + 1) + " of 3 of a split model)");
  }
  const SplitModel made;
  made.set_number(1, "split.no", std::string("\2\0", 2));
  CHECK(made.refusal() == made.parts[1] +
                              ": part 2 of 3 of a split model, by its name; its metadata key 'split.no' is 2, "
                              "expected 1: give each part its own name again");
  made.set_number(1, "split.no", std::string("\1\0", 2));
  made.set_number(1, "split.count", std::string("\4\0", 2));
  CHECK(made.refusal() == made.parts[1] +
                              ": part 2 of 3 of a split model, by its name; its metadata key 'split.count' is 4, "
                              "expected 3: give each part its own name again");
  CHECK_THAT(made.refusal(1), Contains("one of 4 parts of a split model") && Contains("NAME-00002-of-00004.gguf"));
  made.set_number(1, "split.count", std::string("\3\0", 2));
  CHECK(made.refusal().empty());
  made.set_number(0, "split.tensors.count", std::string("\65\0\0\0", 4));
  CHECK(made.refusal() ==
        made.parts[0] + ": metadata key 'split.tensors.count' is 53, but the 3 parts have 51 tensors");
}

TEST_CASE("a part that was copied over another has its tensors twice") {
  const SplitModel made;
  const std::string third = made.parts[2];
  fs::copy_file(made.parts[1], third, fs::copy_options::overwrite_existing);
  made.set_number(2, "split.no", std::string("\2\0", 2));
  CHECK_THAT(made.refusal(), StartsWith(third + ": tensor ") && Contains("is in an earlier part, too"));
}

TEST_CASE("a part that is called otherwise says how parts are found") {
  const SplitModel made;
  fs::rename(made.parts[0], made.folder / "first.gguf");
  CHECK_THROWS_WITH(Model::open(made.folder / "first.gguf"),
                    Contains("one of 3 parts of a split model, whose others are found by name: call it "
                             "NAME-00001-of-00003.gguf, and so on"));
  made.set_number(1, "split.no", std::string("\xff\xff", 2));
  fs::rename(made.parts[1], made.folder / "second.gguf");
  CHECK_THROWS_WITH(Model::open(made.folder / "second.gguf"),
                    Contains("metadata key 'split.no' is 65535, expected 0 to 2: the model has 3 parts"));
}

TEST_CASE("a run on a split model gives what one on the whole gives, and none of its parts is replaced") {
  const SplitModel made;
  const auto contract = [&](const std::string& name, const std::string& model) {
    write_text(made.folder / name, gate_text("a", held_claim,
                                             "capture: [{stages: lm_head, lanes: free, to: dump}]\n"
                                             "sinks: {dump: {sink: npy, dir: dump}}\n",
                                             "{gguf: " + model + "}"));
  };
  contract("whole.yaml", "whole.gguf");
  contract("split.yaml", "m-00003-of-00003.gguf");
  const auto run = [&](const std::string& name, const std::string& more = "") {
    return run_tool("run " + quoted(made.folder / name + ".yaml") + " --out " + quoted(made.folder / name) + more);
  };
  CHECK(run("whole").code == 0);
  const Finished split = run("split");
  INFO(split.out << split.err);
  CHECK(split.code == 0);
  const auto logits = [&](const std::string& name) {
    for (const auto& entry : fs::recursive_directory_iterator(made.folder / name))
      if (entry.path().filename() == "lm_head.npy") return read_text(entry.path().string());
    return std::string();
  };
  CHECK_FALSE(logits("whole").empty());
  CHECK(logits("split") == logits("whole"));
  const std::string second = read_text(made.parts[1]);
  const Finished refused = run("split", " --overwrite --json " + quoted(made.parts[1]));
  CHECK(refused.code == 2);
  CHECK_THAT(refused.err, Contains("would replace a part of the model"));
  CHECK(read_text(made.parts[1]) == second);
  const Finished listed = run_tool("inspect -v " + quoted(made.parts[1]));
  CHECK_THAT(listed.out, Contains("3 parts, ") && Contains("part 3"));
}

}  // namespace moe_diag
