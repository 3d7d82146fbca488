// SPDX-License-Identifier: MIT
#include "apps/moe_diag/judge_recording.hpp"

#include <fmt/format.h>

#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/api/error.hpp"
#include "core/api/output_file.hpp"
#include "core/report/text.hpp"

namespace moe_diag {
namespace {

namespace fs = std::filesystem;

std::string text_of_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

// In the folder of all outputs, where one is named.
std::string contract_file(const JudgeRecordingArguments& arguments) {
  if (!arguments.contract.empty()) return arguments.contract;
  if (arguments.run.settings.out) {
    fs::create_directories(*arguments.run.settings.out);
    return *arguments.run.settings.out + "/contract.yaml";
  }
  fs::path dump = fs::path(arguments.judge.dump).lexically_normal();
  if (dump.filename().empty()) dump = dump.parent_path();
  return fmt::format("judge-{}.yaml", dump.filename().string());
}

// One that somebody changed by hand is not replaced unasked.
void write_contract(const std::string& path, const std::string& text, bool overwrite) {
  std::error_code error;
  if (fs::exists(path, error) && !overwrite && text_of_file(path) != text)
    throw Error(
        ErrorKind::usage,
        fmt::format("{0}: is there already, for other options or changed by hand: run it with `moe-diag run {0}`, "
                    "choose another place (--contract), or replace it (--overwrite)",
                    path));
  write_whole_file(path, text);
}

}  // namespace

std::vector<CLI::Option*> add_judge_recording_options(CLI::App& command, JudgeRecordingArguments& a) {
  std::vector<CLI::Option*> options;
  const auto add = [&](const char* name, auto& value, const char* text, const char* type) {
    options.push_back(command.add_option(name, value, text)->type_name(type)->group("Recordings"));
    return options.back();
  };
  add("--map", a.judge.map, "Another tool's files: a map of `moe-diag maps`, or a file .yaml (docs/maps.md)",
      "NAME|FILE");
  add("--layers", a.judge.layers, "Only these layers, as in contracts: 5..8, 0, -1", "LAYERS");
  add("--numerics", a.judge.numerics,
      "Numerics of the engine: f32, bf16, q8_k, q8_1, fp8 [as the dump says, else those that fit its matmuls]", "NAME");
  add("--reads", a.judge.reads, "How its products read activations: fp8_128, ... (docs/numerics.md)", "NAME");
  add("--weights", a.judge.weights, "How it rounds weights: fp8_block, ...", "NAME");
  add("--stored", a.judge.stored, "The types it stores stages in: hf, vllm, bf16, ... [as recorded]", "NAME");
  add("--kv-cache", a.judge.kv_cache, "The type of its KV cache: f16, q8_0, ...", "NAME");
  add("--lane", a.judge.lane, "Of a capture of moe-diag: the lane that is judged", "NAME");
  add("--at-most", a.judge.at_most, "Errors allowed, in units of the expected or the peer's [10]", "TIMES")
      ->check(CLI::PositiveNumber);
  options.push_back(command.add_flag("--cut-ok", a.judge.cut_ok, "Judge the complete calls of a dump that was cut")
                        ->group("Recordings"));
  options.push_back(command.add_flag("--zeros-ok", a.judge.zeros_ok, "Rows of zeros are what the engine computed")
                        ->group("Recordings"));
  add("--contract", a.contract, "Write the contract here [OUT/contract.yaml; without --out judge-DUMP.yaml]", "FILE");
  options.push_back(command.add_option("--out", a.run.settings.out, "Folder of all outputs [moe-diag-out/judge-DUMP]")
                        ->type_name("DIR")
                        ->group("Recordings"));
  options.push_back(command.add_option("--threads", a.run.settings.threads, "Threads of the judge and its peer")
                        ->check(CLI::Range(1, 256))
                        ->group("Recordings"));
  options.push_back(command.add_option("--junit", a.run.outputs.junit, "Write the outcomes as JUnit XML here")
                        ->type_name("FILE")
                        ->group("Recordings"));
  const std::size_t before = command.get_options().size();
  add_baseline_options(command, a.run);
  const std::vector<CLI::Option*> all = command.get_options();
  for (std::size_t i = before; i < all.size(); ++i) options.push_back(all[i]->group("Recordings"));
  return options;
}

ExitCode judge_recording(JudgeRecordingArguments& a, const Context& context) {
  const Model model = Model::open(a.judge.model);
  RecordingOptions options;
  options.cut_ok = a.judge.cut_ok;
  options.lane = a.judge.lane;
  options.zeros_ok = a.judge.zeros_ok;
  options.map = a.judge.map;
  const Recording recording = Recording::open(a.judge.dump, model.config(), options);
  const std::string path = contract_file(a);
  const ChosenNumerics numerics = numerics_of(a.judge, recording, model, build_program(model));
  write_contract(path, recording_contract(a.judge, numerics, model, recording), a.run.settings.overwrite);
  if (a.run.outputs.json != "-")
    print(fmt::format("recording   {}: {}{}, {} in {}, {} arrays{}\nnumerics    {}\ncontract    {}\n\n", a.judge.dump,
                      recording.layout(), recording.engine().empty() ? "" : ", " + recording.engine(),
                      counted(recording.requests().size(), "request"), counted(recording.calls().size(), "call"),
                      recording.sites().size(), recording.cut_at().empty() ? "" : "; cut: " + recording.cut_at(),
                      numerics.text, path));
  a.run.contracts.paths = {path};
  return run_contracts(a.run, context);
}

}  // namespace moe_diag
