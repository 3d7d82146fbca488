// SPDX-License-Identifier: MIT
#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <string>

#include "apps/moe_diag/commands.hpp"
#include "apps/moe_diag/exit_code.hpp"
#include "apps/moe_diag/interrupt.hpp"
#include "apps/moe_diag/judge_recording.hpp"
#include "apps/moe_diag/run_outputs.hpp"
#include "core/api/output_file.hpp"
#include "core/kernel/judge_report.hpp"
#include "core/run/output_places.hpp"

namespace moe_diag {
namespace {

struct JudgeArguments {
  JudgeRequest request;
  std::string json;
  bool overwrite = false;
};

ExitCode exit_code_of(const JudgedKernel& judged) {
  if (judged.count(CaseOutcome::refused) > 0) return exit_usage;
  if (judged.count(CaseOutcome::falsified) > 0) return exit_falsified;
  return judged.count(CaseOutcome::untested) > 0 ? exit_untested : exit_held;
}

// The files in the folder are read, or are what the next verdict is of.
void check_json(const JudgeArguments& arguments) {
  const std::string& json = arguments.json;
  if (json.empty() || json == "-") return;
  const std::string within = resolved(json).lexically_relative(resolved(arguments.request.folder)).string();
  if (!within.empty() && !within.starts_with(".."))
    throw Error(
        ErrorKind::usage,
        fmt::format("{}: lies in the folder of the cases, whose files are read; choose another place (--json)", json));
  check_output(json, arguments.overwrite, "--json");
}

ExitCode judge(JudgeArguments& arguments) {
  const std::string& json = arguments.json;
  check_json(arguments);
  note_interrupts();
  arguments.request.interrupted = is_interrupted;
  const std::string& folder = arguments.request.folder;
  const JudgedKernel judged = judge_kernel(arguments.request);
  if (!json.empty()) {
    const std::string text = judge_json(judged, folder, MOE_DIAG_VERSION);
    if (json == "-")
      print(text);
    else
      write_whole_file(json, text);
  }
  if (json != "-") print(judge_report(judged, folder));
  return exit_code_of(judged);
}

[[noreturn]] void refuse(const CLI::Option& option, std::string_view why) {
  throw Error(ErrorKind::usage, fmt::format("{}: {}", option.get_name(), why));
}

}  // namespace

void add_judge(CLI::App& app, Context& context) {
  CLI::App* command = app.add_subcommand(
      "judge", "Judge a recording of another engine, or what a kernel of your own wrote for the cases of `cases`");
  auto arguments = std::make_shared<JudgeArguments>();
  auto recording = std::make_shared<JudgeRecordingArguments>();
  auto places = std::make_shared<std::vector<std::string>>();
  command
      ->add_option("WHAT", *places,
                   "A recording: the model's GGUF file and the dump's folder. Cases of a kernel: their folder")
      ->required()
      ->expected(1, 2)
      ->type_name("MODEL DUMP | DIR");
  CLI::Option* model =
      command->add_option("--model", arguments->request.model, "Where the model is now [where it was for `cases`]")
          ->type_name("MODEL.gguf")
          ->group("Cases of a kernel");
  const std::vector<CLI::Option*> of_recordings = add_judge_recording_options(*command, *recording);
  command
      ->add_option("--json", arguments->json, "Write the verdict as JSON here, too; - prints it instead of the report")
      ->type_name("FILE");
  command->add_flag("--overwrite", arguments->overwrite, "Replace the file of --json");
  command->footer(
      "A recording: every step is computed again from what the engine had, and named where it is wrong. The contract\n"
      "for it is kept, so that `moe-diag run` judges the next dump. Exit codes are those of `run`.\n"
      "  moe-diag judge model.gguf dump\n"
      "\n"
      "Each case that has an out.safetensors is held or falsified by the error that its numerics allow a row. What is\n"
      "falsified is looked at: numbers of rows, rows, columns, experts, and which mistake of the span explains it, "
      "for\n"
      "which the model is read again.\n"
      "Example:\n"
      "  moe-diag judge cases\n"
      "Exit codes: 0 all cases held; 1 one is falsified; 2 a file of them is wrong, or what the kernel wrote has\n"
      "another name, shape or type; 3 nothing is falsified, and for a case nothing was written.");
  command->callback([=, &context] {
    const bool is_recording = places->size() == 2;
    if (is_recording && model->count() > 0) refuse(*model, "is for the cases of a kernel: remove it");
    for (const CLI::Option* option : of_recordings)
      if (!is_recording && option->count() > 0) refuse(*option, "is for recordings, MODEL DUMP: remove it");
    if (!is_recording && std::filesystem::is_regular_file(places->front()))
      throw Error(ErrorKind::usage, fmt::format("{}: is a file: a recording is judged by `moe-diag judge MODEL DUMP`, "
                                                "cases of a kernel by their folder",
                                                places->front()));
    if (!is_recording) {
      arguments->request.folder = places->front();
      context.exit_code = judge(*arguments);
      return;
    }
    recording->judge.model = places->front();
    recording->judge.dump = places->back();
    recording->run.outputs.json = arguments->json;
    recording->run.settings.overwrite = arguments->overwrite;
    recording->run.outputs.details = context.verbose;
    recording->run.outputs.plugin_dirs = context.plugin_dirs;
    context.exit_code = judge_recording(*recording, context);
  });
}

}  // namespace moe_diag
