// SPDX-License-Identifier: MIT
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "core/model/synthetic.hpp"
#include "tests/support/catch.hpp"
#include "tests/unit/model/scratch.hpp"

namespace moe_diag {
namespace {

// What a command line printed, both streams, and its exit code.
struct Answer {
  int code;
  std::string text;
};
Answer run(const test::Scratch& scratch, const std::string& arguments) {
  const std::string out = scratch.path("out");
  const int status = std::system((MOE_DIAG_EXE " " + arguments + " > " + out + " 2>&1").c_str());
  std::ifstream file(out);
  return {WIFEXITED(status) ? WEXITSTATUS(status) : -1, {std::istreambuf_iterator<char>(file), {}}};
}

TEST_CASE("synth writes what inspect shows") {
  const test::Scratch scratch("commands");
  const std::string model = scratch.path("m.gguf");
  REQUIRE(run(scratch, "synth " + model + " --layers 48 --seed 3").code == 0);
  CHECK(std::filesystem::file_size(model) == synthetic_bytes({"tiny", 48, "q4_k_m", 3}));
  const Answer shown = run(scratch, "inspect " + model);
  CHECK(shown.code == 0);
  CHECK_THAT(shown.text, Catch::Matchers::Contains("12, 3 used, 256 wide"));
  CHECK_THAT(shown.text, Catch::Matchers::Contains("0..=5,8,11,14,17,20,23,26,29,32,35,38,41..=47"));
  CHECK_THAT(run(scratch, "-v inspect " + model).text, Catch::Matchers::Contains("blk.47.ffn_down_exps.weight"));
  const auto json = nlohmann::json::parse(run(scratch, "inspect --json " + model).text);
  CHECK(json["config"]["head_dim"] == 64);
  CHECK(json["tensors"].size() == 3 + 48 * 12);
  std::uint64_t bytes = 0;
  for (const auto& type : json["types"]) bytes += type["bytes"].get<std::uint64_t>();
  CHECK(bytes < json["bytes"].get<std::uint64_t>());
  CHECK(bytes > json["bytes"].get<std::uint64_t>() * 99 / 100);
}

TEST_CASE("exit codes and messages of synth and inspect") {
  const test::Scratch scratch("command_errors");
  const std::string model = scratch.path("m.gguf");
  const auto expect = [&](int code, const std::string& arguments, const std::string& message) {
    INFO(arguments);
    const Answer answer = run(scratch, arguments);
    CHECK(answer.code == code);
    CHECK_THAT(answer.text, Catch::Matchers::Contains(message));
  };
  expect(2, "inspect " + model, "there is no such file");
  expect(2, "inspect", "MODEL is required");
  expect(2, "synth", "OUT is required");
  expect(2, "synth --preset large " + model, "there are: tiny-qwen2moe, qwen1.5-moe-a2.7b, tiny, qwen3-30b-a3b");
  expect(2, "synth --quant q9 " + model, "there are: f32, f16");
  expect(2, "synth --layers 0 " + model, "--layers");
  expect(2, "synth --seed -1 " + model, "--seed");
  expect(2, "synth --threads 0 " + model, "--threads");
  expect(2, "synth " + scratch.path("no/m.gguf"), "there is no folder");
  CHECK_FALSE(std::filesystem::exists(model));
  test::write_file(model, std::vector<std::byte>(100));
  expect(4, "inspect " + model, "not a GGUF file");
  expect(2, "synth " + model, "is there already; replace it with --overwrite");
  CHECK(std::filesystem::file_size(model) == 100);
  expect(0, "synth --overwrite " + model, "synthetic: tiny, 4 layers, q4_k_m, seed 0");
  std::filesystem::resize_file(model, std::filesystem::file_size(model) - 1);
  expect(4, "inspect " + model, "lies outside the file");
}

TEST_CASE("inspect lists what is in a file that cannot be computed, and says why it cannot") {
  using Catch::Matchers::Contains;
  const test::Scratch scratch("command_outline");
  const std::string model = scratch.path("m.gguf");
  REQUIRE(run(scratch, "synth " + model).code == 0);
  std::ifstream in(model, std::ios::binary);
  const std::string right{std::istreambuf_iterator<char>(in), {}};
  const auto inspected = [&](const std::string& bytes, const std::string& option = "") {
    std::ofstream(model, std::ios::binary) << bytes;
    return run(scratch, "inspect " + model + option);
  };

  std::string other = right;
  for (std::size_t at = other.find("qwen3moe"); at < 4096; at = other.find("qwen3moe", at))
    other.replace(at, 8, "qwen9moe");
  const Answer architecture = inspected(other);
  CHECK(architecture.code == 4);
  CHECK_THAT(architecture.text, Contains("the architecture is 'qwen9moe'; supported: 'qwen2moe', 'qwen3moe'") &&
                                    Contains("general.architecture = 'qwen9moe'") &&
                                    Contains("qwen9moe.expert_count = 12") && Contains("blk.*.ffn_down_exps.weight"));

  std::string typed = right;
  const std::string name = "blk.2.ffn_down_exps.weight";
  const std::size_t type = typed.find(name) + name.size() + 4 + 3 * 8;
  typed.replace(type, 4, std::string("\x10\0\0\0", 4));
  const Answer iq2 = inspected(typed);
  CHECK(iq2.code == 4);
  CHECK_THAT(iq2.text, Contains("IQ2_XXS") && Contains("not supported") && Contains("blk.2.ffn_down_exps.weight"));
  typed.replace(type, 4, std::string("\x2c\x01\0\0", 4));
  CHECK_THAT(inspected(typed).text, Contains("type 300") && Contains("does not know"));
  std::istringstream lines(inspected(typed, " --json").text);  // and the refusal behind it
  nlohmann::json json;
  lines >> json;
  CHECK(json["computed"] == false);
  CHECK_THAT(json["why"].get<std::string>(), Contains("300"));
  CHECK(json["metadata"]["general.architecture"] == "qwen3moe");
  CHECK(json["tensors"].size() == 3 + 4 * 12);

  // Half of a download.
  const Answer half = inspected(right.substr(0, right.size() / 2));
  CHECK(half.code == 4);
  CHECK_THAT(half.text, Contains("a download may be incomplete") && Contains("blk.*.attn_q.weight"));
}

}  // namespace
}  // namespace moe_diag
